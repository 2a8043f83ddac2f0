// The gateway's endpoints, as clients see them.

/** What the gateway refused, or that it is out of reach. */
class Trouble extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

let key = ""; // kept in this page alone, until it is closed

async function reach(path, options = {}) {
  const headers = { ...(key ? { Authorization: `Bearer ${key}` } : {}), ...options.headers };
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The gateway cannot be reached.", 0);
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const retry = response.headers.get("Retry-After");
  throw new Trouble(`${told?.error?.message ?? `The gateway answered ${response.status}.`}${retry ? ` Try again in ${retry} s.` : ""}`, response.status);
}

/** The models that one may ask for. */
const models = async () => (await (await reach("/v1/models")).json()).data;

/** The objects of a stream of chunks, one after the other, until it ends. */
async function* chunks(body, signal) {
  const response = await reach("/v1/chat/completions", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  });
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue; // a heartbeat
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const told = JSON.parse(data);
      if (told.error) throw new Trouble(told.error.message, 200);
      yield told;
    }
  }
  throw new Trouble("The connection broke off before the answer was complete.", 0);
}
