/* The mocked DCP's way into dcp-client, evaluated inside PythonMonkey after dcp.init(). What a worker fails
 * at is thrown where attempt() catches it, and not in an async function: PythonMonkey would tell the job
 * script of every promise that is rejected before it is awaited. EFETCH is what the real worker calls a fetch
 * that fails in no special way, such as a text that is not the JSON it should be. */
(() => {
  const { kvin, utils, protocol } = globalThis.dcp;
  const toSandbox = (message) => JSON.stringify({ type: 'workerMessage', message: kvin.marshal(message) });

  /* When WebAssembly is compiled in the background, PythonMonkey 1.4.1 may freeze. */
  WebAssembly.instantiate = async (bytes, imports) => {
    const module = new WebAssembly.Module(bytes);
    return { module, instance: new WebAssembly.Instance(module, imports) };
  };

  /** Let a worker's function return what it fails at, as {error}. */
  const attempt = (work) => async (...args) => {
    try {
      return await work(...args);
    } catch ({ name, message, code = 'EFETCH' }) {
      return { error: { name, message, code } };
    }
  };

  /** The seam: put `answer` in the place of the network. Its arguments are those in send(), below. */
  function replaceConnection(answer) {
    protocol.Connection = class Connection {
      constructor(target) {
        const emitter = new globalThis.dcp['dcp-events'].EventEmitter('mocked connection');
        const dcpsid = this.dcpsid = utils.generateOpaqueId();
        const push = (event) => emitter.emit('request',
          { payload: { operation: 'event', data: JSON.parse(event) }, respond() {} });
        for (const method of ['on', 'off', 'removeAllListeners'])
          this[method] = (...args) => emitter[method](...args);
        this.Request = class Request {
          signers = [];
          constructor(operation, data) {
            this.payload = operation.operation ? operation : { operation, data };
          }
          async authorize(keystore) { this.signers.push(String(keystore.address)); }
          async send() {
            const { operation, data, jsonData = JSON.stringify(data) } = this.payload;
            const { error, payload } = JSON.parse(
              await answer(target.location.pathname, dcpsid, operation, jsonData, this.signers, push));
            if (error) throw Object.assign(new Error(error.message), error);
            return { success: true, payload };
          }
        };
      }
      request(operation, data) { return new this.Request(operation, data).send(); }
    };
    for (const method of ['connect', 'close', 'keepalive', 'isQuiescent', 'ref', 'unref'])
      protocol.Connection.prototype[method] = async () => {};
  }

  /** Let workers read text as browsers do, and hear of a certificate that they do not trust. */
  function mendRequests(decode, onUntrusted) {
    const { open } = XMLHttpRequest.prototype;
    XMLHttpRequest.prototype.open = function mendedOpen(method, url) {
      open.call(this, method, url);
      this.responseType = 'arraybuffer';
      this.addEventListener('error', ({ error }) => {
        if (String(error).includes('CERTIFICATE_VERIFY_FAILED')) onUntrusted(new URL(url).origin);
      });
    };
    const responseText = { get() { return decode(new Uint8Array(this.response)); } };
    Object.defineProperty(XMLHttpRequest.prototype, 'responseText', responseText);
  }

  /** What a client that knows the join secret sends, worked out by dcp-client's own code. */
  function joinHashHash(dcpsid, joinKey, joinSecret) {
    const [group] = globalThis.dcp['compute-groups'].generateTaskRequestWorkerComputeGroups(
      { computeGroups: [{ joinKey, joinSecret }], leaveGlobalGroup: true }, { connection: { dcpsid } });
    return group.joinHashHash;
  }

  /** The slices of an input set, as JSON: each a {value}, marshalled, or the {href} to fetch it from. */
  function slices(inputSet) {
    const { dataValues, dataRange, dataPattern, sliceCount } = JSON.parse(inputSet);
    const values = dataValues ? kvin.unmarshal(dataValues)
      : dataRange ? Array.from(globalThis.dcp['range-object'].rehydrateRange(dataRange))
      : Array.from({ length: sliceCount }, (_, i) => new URL(dataPattern.replace('{slice}', i + 1)));
    const toSlice = (data) => data?.href ? { href: data.href } : { value: kvin.marshal(data) };
    return JSON.stringify(values.map(toSlice));
  }

  /** A worker's allow list: of origins, for every purpose. */
  function allowList(origins) {
    globalThis.structuredClone ??= (value) => JSON.parse(JSON.stringify(value));    /* for dcp-client */
    return new globalThis.dcp.worker.originAccessManager.OriginAccessManager({ any: Array.from(origins) });
  }

  function fetchURI(uri, allowed, purpose) {
    const { protocol, origin } = new URL(uri);
    if (protocol === 'data:' || allowed.isAllowed(origin, purpose))
      return utils.fetchURI(uri, allowed, purpose);
    throw Object.assign(new Error(`Not allowed to fetch from the origin '${origin}'`),    /* its own words */
      { name: 'DCPError', code: 'EPERM_ORIGIN' });
  }

  /** Fetch work function and arguments as a worker does; return the message that hands them to a sandbox. */
  function assignment(submitted, allowed) {
    const { workFunctionURI, marshaledArguments, worktime, ...job } = JSON.parse(submitted);
    const { name, version } = worktime;
    const fetched = kvin.unmarshal(marshaledArguments).map((value) =>
      value.href ? fetchURI(value.href, allowed, 'fetchArguments')
        : (value.method === 'json' ? JSON : kvin).parse(value.string));
    fetched.push(fetchURI(workFunctionURI, allowed, 'fetchWorkFunctions'));
    return Promise.all(fetched).then((values) => toSandbox({ request: 'assign', sandboxConfig: {}, job: {
      dependencies: [], requirePath: [], modulePath: [], ...job, id: job.job, public: job,
      workFunction: String(values.pop()), arguments: values,
      worktime: { name, version: version.replace('^', '') } } }));    /* the version that it has */
  }

  /** Return the message that hands a slice to a sandbox. */
  function slice(task, allowed) {
    const { value, href } = JSON.parse(task);
    const fetched = href ? fetchURI(href, allowed, 'fetchData') : kvin.unmarshal(value);
    return Promise.resolve(fetched).then((data) => toSandbox({ request: 'main', data }));
  }

  /** Read a line of the sandbox. A thrown error is a result too: the real worker posts it like one. */
  function fromSandbox(line) {
    let value;
    try {
      value = kvin.unmarshal(JSON.parse(line).message).value;
    } catch {
      value = { request: 'workError', error: new Error('Unserializable message from work function') };
    }
    if (value.request === 'workError') {
      const { stack, message, name } = value.error;
      value.error = { name, message, code: 'EUNCAUGHT', stack };
      value.result = { stack, message, errorCode: 'EUNCAUGHT', name };
    }
    if (value.request === 'console') value.payload.message = kvin.marshal(value.payload.message);
    const { result, ...others } = value;
    const forms = { ...asJSON(result), truthy: Boolean(result), kvin: kvin.serialize(result) };
    return JSON.stringify({ ...others, ...forms });
  }

  /** What JSON makes of a result; of a BigInt or a cycle it makes nothing. */
  function asJSON(result) {
    try {
      return { json: JSON.stringify(result) };
    } catch ({ message }) {
      return { noJSON: message };
    }
  }

  /** Post a result as the real worker's sendResultToRemote does; return the server's answer, a data: URI. */
  function postResult(submitted, element, result, allowed) {
    const { resultStorageDetails: url, resultStorageParams } = JSON.parse(submitted);
    const params = { contentType: 'application/json', element, ...resultStorageParams };
    const { truthy, json, noJSON, kvin: serialized } = JSON.parse(result);
    const { isKVIN } = utils.categorizeContentType(params.contentType);
    if (noJSON && !isKVIN) throw new TypeError(noJSON);
    if (truthy) params.content = isKVIN ? serialized : json;
    else params.error = 'null';
    if (!allowed.isAllowed(new URL(url).origin, 'sendResults'))
      throw new Error(`Invalid origin for remote result storage: '${url}'`);
    return utils.justFetch(url, 'string', 'POST', false, params).then((text) => utils.encodeDataURI(text));
  }

  return { replaceConnection, mendRequests, joinHashHash, slices, allowList, fromSandbox,
           encodeDataURI: utils.encodeDataURI, toSandbox: (request) => toSandbox(JSON.parse(request)),
           assignment: attempt(assignment), slice: attempt(slice), postResult: attempt(postResult) };
})()
