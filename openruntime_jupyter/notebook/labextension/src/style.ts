import css from '../style/base.raw.css';

/** Add the style sheet to the page. */
export function addStyle(): void {
  const style = document.createElement('style');
  style.textContent = css;
  document.head.append(style);
}
