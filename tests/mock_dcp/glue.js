/* The mocked DCP's way into dcp-client, evaluated inside PythonMonkey once dcp.init() has loaded it. Errors are
 * returned, as {error: {...}}: PythonMonkey would print the stack of every rejected promise. */
(() => {
  const { kvin, utils, protocol } = globalThis.dcp;
  const attempt = async (promise) => promise.catch((e) => ({
    error: { name: e.name, message: e.message, code: e.code || e.errorCode || null } }));
  const toSandbox = (message) => JSON.stringify({ type: 'workerMessage', message: kvin.marshal(message) });

  /** Put `answer` in the place of the network: (service, dcpsid, operation, data, signers, push) => JSON. */
  function replaceConnection(answer)
  {
    protocol.Connection = class Connection
    {
      constructor(target)
      {
        this.service = target.location.pathname.replace(/\//g, '');
        this.dcpsid = utils.generateOpaqueId();
        this.emitter = new globalThis.dcp['dcp-events'].EventEmitter('mocked connection');
        const connection = this;
        this.Request = class Request
        {
          constructor(operation, data)
          {
            this.payload = typeof operation === 'object' ? operation : { operation, data };
            this.signers = [];
          }
          async authorize(keystore) { this.signers.push(String(keystore.address)); }
          async send()
          {
            const { operation, data, jsonData } = this.payload;
            const push = (event) => connection.emitter.emit('request',
              { payload: { operation: 'event', data: JSON.parse(event) }, respond() {} });
            const { error, payload } = JSON.parse(await answer(connection.service, connection.dcpsid, operation,
              jsonData || JSON.stringify(data), this.signers, push));
            if (error)
              throw Object.assign(new Error(error.message), error);
            return { success: true, payload };
          }
        };
      }
      request(operation, data) { return new this.Request(operation, data).send(); }
      on(...args) { this.emitter.on(...args); return this; }
      off(...args) { this.emitter.off(...args); return this; }
      removeAllListeners(...args) { this.emitter.removeAllListeners(...args); }
      ref() { return this; }
      unref() { return this; }
      isQuiescent() { return true; }
      async connect() {}
      async keepalive() {}
      close() {}
    };
  }

  /** What a client that knows the join secret sends, worked out by dcp-client's own code. */
  function joinHashHash(dcpsid, joinKey, joinSecret)
  {
    return globalThis.dcp['compute-groups'].generateTaskRequestWorkerComputeGroups(
      { computeGroups: [{ joinKey, joinSecret }], leaveGlobalGroup: true }, { connection: { dcpsid } })[0].joinHashHash;
  }

  /** The slices of an input set as messages for a sandbox, or {href} for those that the worker has to fetch. */
  function slices(inputSet)
  {
    const { dataValues, dataRange, dataPattern, sliceCount } = JSON.parse(inputSet);
    const values = dataValues ? kvin.unmarshal(dataValues)
      : dataRange ? Array.from(globalThis.dcp['range-object'].rehydrateRange(dataRange))
      : Array.from({ length: sliceCount || 0 }, (_, i) => new URL(dataPattern.replace('{slice}', i + 1)));
    return values.map((value) => value?.href ? { href: value.href } : { line: toSandbox({ request: 'main', data: value }) });
  }

  /** A worker's allow list. One that refuses to post has it for everything but results. */
  function allowList(origins, refusesToPost)
  {
    globalThis.structuredClone ??= (value) => JSON.parse(JSON.stringify(value));    /* PythonMonkey has none */
    const purposes = refusesToPost ? ['fetchArguments', 'fetchData', 'fetchWorkFunctions'] : ['any'];
    return new globalThis.dcp.worker.originAccessManager.OriginAccessManager(
      Object.fromEntries(purposes.map((purpose) => [purpose, Array.from(origins)])));
  }

  /** Fetch work function and arguments as a worker does; return the message that assigns the job to a sandbox. */
  async function assignment(job, allowed)
  {
    const { workFunctionURI, marshaledArguments, worktime, useStrict, ...details } = JSON.parse(job);
    const workFunction = await utils.fetchURI(workFunctionURI, allowed, 'fetchWorkFunctions');
    const values = await Promise.all(kvin.unmarshal(marshaledArguments).map((value) =>
      value.href ? utils.fetchURI(new URL(value.href), allowed, 'fetchArguments')
        : value.method === 'json' ? JSON.parse(value.string) : kvin.parse(value.string)));
    const version = { 'map-basic': '1.0.0' }[worktime.name];
    if (!version)
      throw Object.assign(new Error(`the mocked worker has no worktime '${worktime.name}'`), { code: 'ENOWORKTIME' });
    const { name, description, link, requirePath, dependencies } = details;
    return toSandbox({ request: 'assign', sandboxConfig: {}, job: {
      id: details.job, arguments: values, workFunction: String(workFunction), worktime: { name: worktime.name, version },
      useStrict: Boolean(useStrict), dependencies: dependencies || [], requirePath: requirePath || [], modulePath: [],
      public: { name, description, link } } });
  }

  async function sliceData(href, allowed)
  {
    return toSandbox({ request: 'main', data: await utils.fetchURI(new URL(href), allowed, 'fetchData') });
  }

  /** Read a line of the sandbox. A thrown error is a result too: the real worker posts it like one. */
  function fromSandbox(line)
  {
    const { value } = kvin.unmarshal(JSON.parse(line).message);
    if (value.request === 'workError')
    {
      const { stack, message, name, code } = value.error;
      value.error = { message, name, code: 'EUNCAUGHT', stack };
      value.result = { stack, message, errorCode: 'EUNCAUGHT', name };
    }
    const { result, ...rest } = value;
    return JSON.stringify({ ...rest, truthy: Boolean(result), json: JSON.stringify(result), kvin: kvin.serialize(result) });
  }

  /** Post a result to its remote storage, as the real worker's sendResultToRemote does; return the answer as data: URI. */
  async function postResult(details, slice, result, allowed)
  {
    const { resultStorageDetails, resultStorageParams } = JSON.parse(details), { truthy, json, kvin: serialized } = JSON.parse(result);
    const params = { contentType: 'application/json', element: slice, ...resultStorageParams };
    if (truthy)
      params.content = utils.categorizeContentType(params.contentType).isKVIN ? serialized : json;
    else
      params.error = 'null';
    const { origin } = new URL(resultStorageDetails);
    if (!allowed.isAllowed(origin, 'sendResults'))
      throw Object.assign(new Error(`Invalid origin for remote result storage: '${origin}'`), { code: 'EPERM_ORIGIN' });
    return utils.encodeDataURI(await utils.justFetch(resultStorageDetails, 'string', 'POST', false, params));
  }

  return { replaceConnection, joinHashHash, slices, allowList, fromSandbox, encodeDataURI: utils.encodeDataURI,
    toSandbox: (message) => toSandbox(JSON.parse(message)),
    assignment:  (...args) => attempt(assignment(...args)),
    sliceData:   (...args) => attempt(sliceData(...args)),
    postResult:  (...args) => attempt(postResult(...args)) };
})()
