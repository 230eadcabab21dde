/* The mocked DCP's way into dcp-client, evaluated inside PythonMonkey after dcp.init(). What a worker fails
 * at is returned, as {error}: PythonMonkey would print the stack of every rejected promise. EFETCH is what the
 * real worker calls a fetch that fails in no special way, such as a text that is not the JSON it should be. */
(() => {
  const { kvin, utils, protocol } = globalThis.dcp;
  const toSandbox = (message) => JSON.stringify({ type: 'workerMessage', message: kvin.marshal(message) });
  const attempt = (work) => (...args) => work(...args).catch(
    ({ name, message, code = 'EFETCH' }) => ({ error: { name, message, code } }));

  /** The seam: put `answer` in the place of the network. Its arguments are those in send(), below. */
  function replaceConnection(answer)
  {
    protocol.Connection = class Connection
    {
      constructor(target)
      {
        const emitter = new globalThis.dcp['dcp-events'].EventEmitter('mocked connection');
        const dcpsid = this.dcpsid = utils.generateOpaqueId();
        const push = (event) => emitter.emit('request',
          { payload: { operation: 'event', data: JSON.parse(event) }, respond() {} });
        for (const method of ['on', 'off', 'removeAllListeners'])
          this[method] = (...args) => emitter[method](...args);
        this.Request = class Request
        {
          signers = [];
          constructor(operation, data)
          {
            this.payload = operation.operation ? operation : { operation, data };
          }
          async authorize(keystore) { this.signers.push(String(keystore.address)); }
          async send()
          {
            const { operation, data, jsonData = JSON.stringify(data) } = this.payload;
            const { error, payload } = JSON.parse(
              await answer(target.location.pathname, dcpsid, operation, jsonData, this.signers, push));
            if (error)
              throw Object.assign(new Error(error.message), error);
            return { success: true, payload };
          }
        };
      }
      request(operation, data) { return new this.Request(operation, data).send(); }
    };
    for (const method of ['connect', 'close', 'keepalive', 'isQuiescent', 'ref', 'unref'])
      protocol.Connection.prototype[method] = async () => {};
  }

  /** What a client that knows the join secret sends, worked out by dcp-client's own code. */
  function joinHashHash(dcpsid, joinKey, joinSecret)
  {
    const [group] = globalThis.dcp['compute-groups'].generateTaskRequestWorkerComputeGroups(
      { computeGroups: [{ joinKey, joinSecret }], leaveGlobalGroup: true }, { connection: { dcpsid } });
    return group.joinHashHash;
  }

  /** The slices of an input set, as JSON: each a {value}, marshalled, or the {href} to fetch it from. */
  function slices(inputSet)
  {
    const { dataValues, dataRange, dataPattern, sliceCount } = JSON.parse(inputSet);
    const values = dataValues ? kvin.unmarshal(dataValues)
      : dataRange ? Array.from(globalThis.dcp['range-object'].rehydrateRange(dataRange))
      : Array.from({ length: sliceCount }, (_, i) => new URL(dataPattern.replace('{slice}', i + 1)));
    const toSlice = (data) => data?.href ? { href: data.href } : { value: kvin.marshal(data) };
    return JSON.stringify(values.map(toSlice));
  }

  function sliceMessage(value)
  {
    return toSandbox({ request: 'main', data: kvin.unmarshal(JSON.parse(value)) });
  }

  /** A worker's allow list: of origins for every purpose, or for every purpose but results. */
  function allowList(origins, refusesToPost)
  {
    /* PythonMonkey has none */
    globalThis.structuredClone ??= (value) => JSON.parse(JSON.stringify(value));
    const purposes = refusesToPost ? ['fetchArguments', 'fetchData', 'fetchWorkFunctions'] : ['any'];
    return new globalThis.dcp.worker.originAccessManager.OriginAccessManager(
      Object.fromEntries(purposes.map((purpose) => [purpose, Array.from(origins)])));
  }

  /** Fetch work function and arguments as a worker does; return the message that hands them to a sandbox. */
  async function assignment(submitted, allowed)
  {
    const { workFunctionURI, marshaledArguments, worktime, ...job } = JSON.parse(submitted);
    const workFunction = await utils.fetchURI(workFunctionURI, allowed, 'fetchWorkFunctions');
    const values = await Promise.all(kvin.unmarshal(marshaledArguments).map((value) =>
      value.href ? utils.fetchURI(new URL(value.href), allowed, 'fetchArguments')
        : (value.method === 'json' ? JSON : kvin).parse(value.string)));
    return toSandbox({ request: 'assign', sandboxConfig: {}, job: {
      dependencies: [], requirePath: [], modulePath: [], ...job, id: job.job, public: job, arguments: values,
      workFunction: String(workFunction),
      worktime: { name: worktime.name, version: worktime.version.replace('^', '') } } });    /* what it has */
  }

  async function sliceData(href, allowed)
  {
    return toSandbox({ request: 'main', data: await utils.fetchURI(new URL(href), allowed, 'fetchData') });
  }

  /** Read a line of the sandbox. A thrown error is a result too: the real worker posts it like one. */
  function fromSandbox(line)
  {
    const value = unmarshalled(line), { stack, message, name } = value.error || {};
    if (value.request === 'workError')
      Object.assign(value, { error: { name, message, code: 'EUNCAUGHT', stack },
                             result: { stack, message, errorCode: 'EUNCAUGHT', name } });
    if (value.request === 'console')
      value.payload.message = kvin.marshal(value.payload.message);
    const { result } = value;
    return JSON.stringify({ ...value, result: undefined, truthy: Boolean(result), ...toJSON(result),
                            kvin: kvin.serialize(result) });
  }

  function unmarshalled(line)
  {
    try
    {
      return kvin.unmarshal(JSON.parse(line).message).value;
    }
    catch (error)
    {
      return { request: 'workError', error: new Error('Unserializable message from work function') };
    }
  }

  /** What JSON makes of a result; of a BigInt or a cycle it makes nothing. */
  function toJSON(result)
  {
    try
    {
      return { json: JSON.stringify(result) };
    }
    catch (error)
    {
      return { noJSON: error.message };
    }
  }

  /** Post a result as the real worker's sendResultToRemote does; return the server's answer, a data: URI. */
  async function postResult(submitted, element, result, allowed)
  {
    const { resultStorageDetails: url, resultStorageParams } = JSON.parse(submitted);
    const params = { contentType: 'application/json', element, ...resultStorageParams };
    const { truthy, json, noJSON, kvin: serialized } = JSON.parse(result);
    const { isKVIN } = utils.categorizeContentType(params.contentType);
    if (noJSON && !isKVIN)
      throw new TypeError(noJSON);
    if (truthy)
      params.content = isKVIN ? serialized : json;
    else
      params.error = 'null';
    if (!allowed.isAllowed(new URL(url).origin, 'sendResults'))
      throw new Error(`Invalid origin for remote result storage: '${url}'`);
    return utils.encodeDataURI(await utils.justFetch(url, 'string', 'POST', false, params));
  }

  return { replaceConnection, joinHashHash, slices, sliceMessage, allowList, fromSandbox,
           encodeDataURI: utils.encodeDataURI, toSandbox: (request) => toSandbox(JSON.parse(request)),
           assignment: attempt(assignment), sliceData: attempt(sliceData), postResult: attempt(postResult) };
})()
