/** The builder imports `.raw.css` files as text. */
declare module '*.raw.css' {
  const css: string;
  export default css;
}
