// Text as a terminal shows it, as in `terminal.py`.

const PART = /\x1b\[([0-9;?]*)([A-Za-z])|([\r\n\b])|([^\x1b\r\n\b]+)|\x1b/g;
const LINES = 5_000;
const LENGTH = 20_000;

/** Lines that text is written to. `\r` returns to the start of the line, `\b` erases a character; colours are removed. */
export class Screen {
  constructor() {
    this.lines = [""];
    this.row = 0;
    this.column = 0;
  }

  write(text) {
    for (const part of text.matchAll(PART)) this.apply(...part.slice(1));
    const surplus = Math.min(this.lines.length - LINES, this.row);
    if (surplus > 0) {
      this.lines.splice(0, surplus);
      this.row -= surplus;
    }
  }

  apply(argument, command, control, written) {
    const line = this.lines[this.row];
    const { column } = this;
    if (written) {
      this.lines[this.row] = (line.slice(0, column).padEnd(column) + written + line.slice(column + written.length)).slice(-LENGTH);
      this.column = Math.min(LENGTH, column + written.length);
    } else if (control === "\n") {
      this.row += 1;
      this.column = 0;
      if (this.row === this.lines.length) this.lines.push("");
    } else if (control === "\r") {
      this.column = 0;
    } else if (control === "\b") {
      this.column = Math.max(0, column - 1);
      this.lines[this.row] = line.slice(0, this.column) + line.slice(this.column + 1);
    } else if (command === "A") {
      this.row = Math.max(0, this.row - (Number.parseInt(argument || "1", 10) || 0));
    } else if (command === "K") {
      const before = ["", "0"].includes(argument) ? line.slice(0, column) : " ".repeat(column);
      this.lines[this.row] = before + (argument === "1" ? line.slice(column) : "");
    }
  }

  toString() {
    return this.lines.join("\n");
  }
}
