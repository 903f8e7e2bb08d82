// The component "Send HTTP Request": a form for `$.send.http`, for a platform's list of actions. Address and payload
// come first; the rest are sections that stay closed until they are wanted.

import { METHODS } from "./call.js";

export default {
  key: "egressd-send_http_request",
  name: "Send HTTP Request",
  description: "Sends one HTTP request after the workflow finishes, from a published address. There is no response to read: its record shows what came back.",
  version: "0.1.0",
  type: "action",
  props: {
    url: { type: "string", label: "URL", description: "The whole address, with http:// or https://" },
    payload: { type: "any", label: "Payload", description: "An object or array goes as JSON, a text as it is. Leave it empty to send no body.", optional: true },
    method: { type: "string", label: "Method", options: METHODS, default: "POST", optional: true },
    auth: { type: "object", label: "Authentication", description: "HTTP Basic: username and password", secret: true, optional: true },
    query: { type: "object", label: "Query", description: "Added to the address, percent-encoded; an array repeats its name", optional: true },
    headers: { type: "object", label: "Headers", optional: true },
  },
  run({ $ }) {
    const call = { method: this.method, url: this.url };
    // A form leaves empty what nobody filled in.
    for (const [name, value] of Object.entries({ data: this.payload, auth: this.auth, params: this.query, headers: this.headers })) {
      const empty = value === undefined || value === null || value === "" || (name !== "data" && typeof value === "object" && Object.keys(value).length === 0);
      if (!empty) call[name] = value;
    }
    $.send.http(call);
    $.export("$summary", `Handed over: ${call.method} ${hostOf(call.url)}, sent when the workflow finishes`);
  },
};

/** The address without what may be secret in it. */
function hostOf(url) {
  return URL.canParse(url) ? new URL(url).host : "to the address given";
}
