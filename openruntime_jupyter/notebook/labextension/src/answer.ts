// The answer to a prompt in the output of a cell, in Markdown.

import { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { IRenderMime } from '@jupyterlab/rendermime-interfaces';

import { IOutputItem } from './api';

/** Attributes in text of a model. URLs of images and styles are not among them: they could leak data of the prompt. */
const ATTRIBUTES = {
  '*': ['class'],
  a: ['href'],
  img: ['alt'],
  input: ['checked', 'disabled', 'type'],
  ol: ['start'],
  td: ['align'],
  th: ['align']
};

export class Answer {
  constructor(rendermime: IRenderMimeRegistry) {
    const { sanitizer } = rendermime;
    const strict: IRenderMime.ISanitizer = { sanitize: html => sanitizer.sanitize(html, { allowedAttributes: ATTRIBUTES }) };
    this.renderer = rendermime.clone({ sanitizer: strict }).createRenderer('text/markdown');
  }

  readonly renderer: IRenderMime.IRenderer;

  /** Show the answer that the cell has. The kernel has sanitized it. Its Markdown begins with the line that the page shows itself. */
  show({ data, trusted }: IRenderMime.IMimeModel): Promise<void> {
    const markdown = String(data['text/markdown'] ?? '');
    this.#saved = markdown.slice(markdown.indexOf('\n\n') + 2);
    this.#trusted = trusted;
    this.#text = null;
    return this.render();
  }

  /** Add output of the task. Its text is the answer. */
  add({ output_type, text = '' }: IOutputItem): void {
    this.#text = output_type === 'clear_output' ? '' : (this.#text ?? this.#saved) + text;
  }

  /** Set the whole answer; null for the one of the cell. */
  set(text: string | null): void {
    this.#text = text;
  }

  /** Forget the answer of the cell. */
  restart(): void {
    this.#saved = '';
    this.#text = null;
  }

  render(): Promise<void> {
    const data = { 'text/markdown': this.#text ?? this.#saved };
    return this.renderer.renderModel({ data, trusted: this.#trusted && this.#text === null, metadata: {}, setData: () => undefined });
  }

  #saved = '';
  /** The answer, if the cell does not have it. */
  #text: string | null = null;
  #trusted = false;
}
