/* What dcp.init() would fetch from the scheduler: what dcp-client needs. Nothing is at these addresses. */
(() => {
  const at = (path) => ({ location: new URL(`http://scheduler.invalid/${path}`) });
  const services = (...paths) => Object.fromEntries(paths.map((path) =>
    [path.replace(/-./g, ([, letter]) => letter.toUpperCase()), at(path)]));
  return {
    scheduler: { ...at(''),
                 services: services('job-submit', 'event-router', 'result-submitter', 'compute-groups') },
    bank: { ...at(''), services: services('bank-teller') },
    ...services('package-manager', 'portal', 'cdn', 'px-auth', 'o-auth'),
    eventSubscriber: { seenListSize: 100 },
    job: { maxDeployTime: 3600, deployAttempts: 1, uploadInitialNumberOfSlices: 10, uploadIncreaseFactor: 4,
           uploadSlicesTarget: 1e6, uploadSlicesCeiling: 5e6, sliceUploadErrorTolerance: 3 },
    dcp: { validityStampCachePurgeInterval: 0,
           connectionOptions: { default: { lingerTimeout: 120, identityUnlockTimeout: 3600 } } },
  };
})()
