/* What dcp.init() would fetch from the scheduler: what dcp-client needs. Nothing is at these addresses. */
(() => {
  const at = (path) => ({ location: new URL(`http://scheduler.invalid/${path}`) });
  const services = (...names) => Object.fromEntries(names.map((name) => [name, at(name)]));
  return {
    scheduler: { ...at(''), services: services(
      'jobSubmit', 'eventRouter', 'resultSubmitter', 'computeGroups', 'pheme') },
    bank: { ...at(''), services: services('bankTeller') },
    ...services('packageManager', 'portal', 'cdn', 'pxAuth', 'oAuth'),
    eventSubscriber: { seenListSize: 100 },
    job: { maxDeployTime: 3600, deployAttempts: 1, uploadInitialNumberOfSlices: 10, uploadIncreaseFactor: 4,
           uploadSlicesTarget: 1e6, uploadSlicesCeiling: 5e6, sliceUploadErrorTolerance: 3 },
    dcp: { validityStampCachePurgeInterval: 0,
           connectionOptions: { default: { lingerTimeout: 120, identityUnlockTimeout: 3600 } } },
  };
})()
