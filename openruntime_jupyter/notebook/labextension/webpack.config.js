const { rspack } = require('@rspack/core');

module.exports = {
  target: ['web', 'es2022'],
  module: {
    rules: [{ test: /\.raw\.css$/, loader: 'builtin:lightningcss-loader', options: { minify: true } }]
  },
  optimization: {
    // Module ids that do not depend on the folder of the build, so that the bundle is the same on every machine.
    moduleIds: 'natural',
    chunkIds: 'natural',
    // It also shortens the names of private members, which begin with #.
    minimizer: [new rspack.SwcJsMinimizerRspackPlugin({ minimizerOptions: { ecma: 2022, compress: { passes: 4 } } })]
  }
};
