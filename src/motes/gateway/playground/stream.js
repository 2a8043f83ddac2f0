// The gateway's endpoints, as clients see them.

/** The gateway refused a request, or cannot be reached. */
class Trouble extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

let key = ""; // kept in the memory of this page only

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
  const body = await response.json().catch(() => null);
  const retry = response.headers.get("Retry-After");
  throw new Trouble(`${body?.error?.message ?? `The gateway answered ${response.status}.`}${retry ? ` Try again in ${retry} s.` : ""}`, response.status);
}

/** The models that the key gives access to. */
const models = async () => (await (await reach("/v1/models")).json()).data;

/** The chunks of the response's stream, one after the other. */
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
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Trouble(chunk.error.message, 200);
      yield chunk;
    }
  }
  throw new Trouble("The connection broke off before the answer was complete.", 0);
}
