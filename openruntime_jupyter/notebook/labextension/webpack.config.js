// Module ids that do not depend on the folder of the build, so that the bundle is the same on every machine.
module.exports = { optimization: { moduleIds: 'natural', chunkIds: 'natural' } };
