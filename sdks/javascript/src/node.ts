/** Discovery of a server of this user on this machine, for Node.js. */
import { readFile, readdir, stat } from "node:fs/promises";
import { homedir, platform } from "node:os";
import { join } from "node:path";
import { OpenRuntime } from "./client.js";
import { ConnectionError, NotAllowedError, NotFoundError } from "./errors.js";
import type { Options } from "./transport.js";

interface Announcement {
  url: string;
  token: string;
}

function dataDir(): string {
  const { OPENRUNTIME_DATA_DIR: given, XDG_DATA_HOME: xdg } = process.env;
  if (given) return given;
  if (platform() === "darwin") return join(homedir(), "Library", "Application Support", "openruntime");
  return join(xdg || join(homedir(), ".local", "share"), "openruntime");
}

/** Return the announcement in a file that only this user can read and whose server runs, or null. */
async function announcement(path: string): Promise<Announcement | null> {
  try {
    const { uid, mode } = await stat(path);
    if (uid !== process.getuid?.() || (mode & 0o077) !== 0) return null;
    const { url, token, pid } = JSON.parse(await readFile(path, "utf8")) as Announcement & { pid: number };
    process.kill(pid, 0);
    return { url, token };
  } catch {
    return null;
  }
}

/** Return the announcements of this user's stand-alone servers, newest first. */
async function announcements(): Promise<Announcement[]> {
  const folder = join(dataDir(), "standalone");
  const names = (await readdir(folder).catch(() => [])).filter((name) => name.endsWith(".json"));
  const dated = await Promise.all(
    names.map(async (name) => ({ found: await announcement(join(folder, name)), time: await stat(join(folder, name)).then((at) => at.mtimeMs, () => 0) })),
  );
  return dated.sort((one, other) => other.time - one.time).flatMap(({ found }) => found ?? []);
}

/**
 * Return a client of the server that started this program's Jupyter kernel, otherwise of the newest stand-alone server of this user that
 * responds. Throws a `ConnectionError` if there is none.
 */
export async function connect(options: Omit<Options, "baseUrl" | "token"> = {}): Promise<OpenRuntime> {
  const { OPENRUNTIME_URL: url, OPENRUNTIME_TOKEN: token, OPENRUNTIME_SERVER_PID: server, JPY_PARENT_PID: parent } = process.env;
  const candidates: Options[] = url && parent && server === parent ? [{ baseUrl: url, token }] : [];
  for (const found of await announcements()) {
    // A server that restarts on the same port has a new token.
    const current = async (): Promise<string> => (await announcements()).find((each) => each.url === found.url)?.token ?? found.token;
    candidates.push({ baseUrl: found.url, token: current });
  }
  for (const each of candidates) {
    const client = new OpenRuntime({ ...options, ...each });
    try {
      await new OpenRuntime({ ...options, ...each, maxRetries: 0, timeoutMs: 5_000 }).health();
      return client;
    } catch (problem) {
      if (!(problem instanceof ConnectionError || problem instanceof NotAllowedError || problem instanceof NotFoundError)) throw problem;
    }
  }
  throw new ConnectionError("No OpenRuntime server of this user responds on this machine: start one with `jupyter openruntime`");
}
