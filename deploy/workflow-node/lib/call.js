// One call of a sender, `$.send.http`, `email`, `s3` or `sql`: the author's object in, the API's JSON text out, or an error that
// names every problem.
//
// The rules are those of the API, checked here so that a wrong call fails in the step that made it. Where a URL
// points is not judged here: the appliance does, and its record says why.

import { SendCallError } from "./errors.js";
import { HEADER_BYTES, HEADERS, PREFIX_BYTES, SUBJECT_CHARS } from "./limits.js";
import { join, jsonText, NotJson, shown } from "./snapshot.js";

export const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const FORM = "application/x-www-form-urlencoded";
const SECRET_HEADERS = new Set(["authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "api-key",
  "x-auth-token", "x-amz-security-token"]);

const HINTS = {
  body: "write data",
  json: "write data",
  form: "write data, with the header Content-Type: application/x-www-form-urlencoded",
  payload: "write data",
  query: "write params",
  qs: "write params",
  header: "write headers",
  uri: "write url",
  endpoint: "write url",
  type: "write method",
  context: "the runner sets it",
  timeout: "every send has the same deadline",
  signal: "a send cannot be cancelled from its step",
  baseURL: "write the whole address in url",
};

/**
 * @param {string} caller  `$.send.http` or `$send.http`, as the author wrote it
 * @param {unknown} argument
 * @param {object} context `{workflow, execution, step}`, added to the send
 * @param {{requestBodyBytes: number}} limits
 * @returns {string} JSON text of one item for the API
 */
export function sendText(caller, argument, context, limits) {
  if (argument === null || typeof argument !== "object" || Array.isArray(argument)) {
    throw new SendCallError(caller, [{
      path: "",
      message: `invalid argument ${shown(argument)}: give one object, such as { method: "POST", url, data }`,
    }]);
  }
  const problems = [];
  const wrong = (path, value, why) => problems.push({ path, message: `invalid value ${shown(value)} for ${path}: ${why}` });
  const known = { method: null, url: null, data: null, data_base64: null, headers: null, params: null, auth: null, expires_in: null };
  readMembers(argument, known, HINTS, problems);
  /** The JSON text of a field, or `undefined` after noting why there is none. */
  const text = (value, path, options) => {
    try {
      return jsonText(value, path, options);
    } catch (error) {
      const message = error instanceof NotJson ? error.message : `invalid value for ${path}: ${error?.message ?? error}`;
      problems.push({ path: error?.path ?? path, message });
      return undefined;
    }
  };

  const method = checkMethod(known.method, wrong);
  const url = known.url instanceof URL ? known.url.href : known.url;
  if (typeof url !== "string") wrong("url", known.url ?? undefined, "write the address as a string");
  let headers = checkHeaders(known.headers, wrong, text);
  if (known.data instanceof URLSearchParams) {
    known.data = known.data.toString();
    headers ??= {};
    if (contentType(headers) === null) headers["content-type"] = FORM;
  }
  const params = checkParams(known.params, wrong, text);
  const auth = checkAuth(known.auth, problems, wrong);
  const body = checkBody(known, method, headers, limits, problems, wrong, text);
  const expires = checkExpiry(known.expires_in, wrong);
  if (problems.length > 0) throw new SendCallError(caller, problems);

  const members = [`"method":${JSON.stringify(method)}`, `"url":${JSON.stringify(url)}`];
  if (body !== null) members.push(`"${body.name}":${body.text}`);
  if (headers !== null) members.push(`"headers":${JSON.stringify(headers)}`);
  if (params !== null) members.push(`"params":${JSON.stringify(params)}`);
  if (auth !== null) members.push(`"auth":${JSON.stringify(auth)}`);
  if (expires !== null) members.push(`"expires_in":${expires}`);
  members.push(`"context":${JSON.stringify(context)}`);
  return `{${members.join(",")}}`;
}

const EMAIL_HINTS = {
  ...Object.fromEntries(["to", "cc", "bcc", "recipient", "recipients"].map((key) => [key, "mail goes to the tenant's own address, which the operator has configured"])),
  ...Object.fromEntries(["from", "reply_to", "replyTo", "sender"].map((key) => [key, "the operator has configured the sender"])),
  body: "write text, html or both",
  message: "write text, html or both",
  includeCollaborators: "write include_collaborators",
  attachments: "a message is its text and its HTML",
  context: "the runner sets it",
};

/**
 * @param {string} caller  `$.send.email` or `$send.email`, as the author wrote it
 * @param {unknown} argument
 * @param {object} context `{workflow, execution, step}`, added to the send
 * @param {{requestBodyBytes: number}} limits
 * @returns {string} JSON text of one item for the API
 */
export function emailText(caller, argument, context, limits) {
  if (!plain(argument)) {
    throw new SendCallError(caller, [{ path: "", message: `invalid argument ${shown(argument)}: give one object, such as { subject, text, html }` }]);
  }
  const problems = [];
  const wrong = (path, value, why) => problems.push({ path, message: `invalid value ${shown(value)} for ${path}: ${why}` });
  const known = { subject: null, text: null, html: null, include_collaborators: null, expires_in: null };
  readMembers(argument, known, EMAIL_HINTS, problems);
  const { subject, include_collaborators: collaborators } = known;
  const email = {};
  for (const name of ["subject", "text", "html"]) {
    const value = known[name];
    if (value === null) continue;
    if (typeof value !== "string") wrong(name, value, "write a string");
    else if (value.includes("\0")) wrong(name, value, "mail cannot carry the character U+0000");
    else email[name] = value;
  }
  if (known.text === null && known.html === null) problems.push({ path: "", message: "there is neither text nor html: give one of the two, or both" });
  if (typeof subject === "string") {
    if (/[\u0001-\u001f\u007f-\u009f]/.test(subject)) wrong("subject", subject, "a subject is one line");
    if ([...subject].length > SUBJECT_CHARS) wrong("subject", `[${[...subject].length} characters]`, `at most ${SUBJECT_CHARS}`);
  }
  if (collaborators !== null && typeof collaborators !== "boolean") wrong("include_collaborators", collaborators, "write true or false");
  else if (collaborators !== null) email.include_collaborators = collaborators;
  const expires = checkExpiry(known.expires_in, wrong);
  const written = JSON.stringify(email);
  const bytes = Buffer.byteLength(written);
  if (bytes > limits.requestBodyBytes) {
    problems.push({ path: "", message: `the message takes ${bytes} bytes of JSON, and at most ${limits.requestBodyBytes} are sent` });
  }
  if (problems.length > 0) throw new SendCallError(caller, problems);
  return `{"email":${written},${expires === null ? "" : `"expires_in":${expires},`}"context":${JSON.stringify(context)}}`;
}

const EVENT_HINTS = {
  ...Object.fromEntries(["data", "body", "event", "record"].map((key) => [key, "write payload"])),
  ...Object.fromEntries(["region", "endpoint", "credentials", "schema", "database", "host", "user", "password"]
    .map((key) => [key, "the operator has configured the store"])),
  key: "write prefix: the rest of an object's key is made by egressd",
  context: "the runner sets it",
};

/** Of each destination that events go to: what names a place there, and how such a name must look. */
const PLACES = {
  s3: {
    bucket: [(name) => /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(name), "3 to 63 of a-z, 0-9, - and ."],
    prefix: [(name) => Buffer.byteLength(name) <= PREFIX_BYTES && !/[\u0000-\u001f\u007f-\u009f]/.test(name), `at most ${PREFIX_BYTES} bytes, without control characters`],
  },
  sql: {
    table: [(name) => /^[A-Za-z0-9][A-Za-z0-9_]{0,62}$/.test(name), "a letter or a digit, then up to 62 letters, digits and _"],
  },
};

/**
 * @param {"s3" | "sql"} kind
 * @returns {typeof sendText} of an event: it is written with others, in a batch
 */
export function eventText(kind) {
  const places = PLACES[kind];
  const names = [...Object.keys(places), "payload"];
  return (caller, argument, context, limits) => {
    if (!plain(argument)) {
      throw new SendCallError(caller, [{ path: "", message: `invalid argument ${shown(argument)}: give one object, such as { ${names.join(", ")} }` }]);
    }
    const problems = [];
    const wrong = (path, value, why) => problems.push({ path, message: `invalid value ${shown(value)} for ${path}: ${why}` });
    const known = { ...Object.fromEntries(names.map((name) => [name, null])), expires_in: null };
    readMembers(argument, known, EVENT_HINTS, problems);
    for (const [name, [fits, why]] of Object.entries(places)) {
      if (typeof known[name] !== "string") wrong(name, known[name] ?? undefined, "write a string");
      else if (!fits(known[name])) wrong(name, known[name], why);
    }
    let payload;
    if (typeof known.payload !== "string" && (known.payload === null || typeof known.payload !== "object")) {
      wrong("payload", known.payload ?? undefined, "write an object, an array or a string");
    } else {
      try {
        payload = jsonText(known.payload, "payload");
      } catch (error) {
        const message = error instanceof NotJson ? error.message : `invalid value for payload: ${error?.message ?? error}`;
        problems.push({ path: error?.path ?? "payload", message });
      }
    }
    if (payload !== undefined && Buffer.byteLength(payload) > limits.requestBodyBytes) {
      problems.push({ path: "payload", message: `the payload takes ${Buffer.byteLength(payload)} bytes of JSON, and at most ${limits.requestBodyBytes} are sent` });
    }
    const expires = checkExpiry(known.expires_in, wrong);
    if (problems.length > 0) throw new SendCallError(caller, problems);
    const place = Object.keys(places).map((name) => `"${name}":${JSON.stringify(known[name])},`).join("");
    return `{"${kind}":{${place}"payload":${payload}},${expires === null ? "" : `"expires_in":${expires},`}"context":${JSON.stringify(context)}}`;
  };
}

/** Each member is read once, here: a getter cannot answer one thing to the check and another to the send. */
function readMembers(argument, known, hints, problems) {
  for (const key of Object.keys(argument)) {
    const value = argument[key];
    if (Object.hasOwn(known, key)) known[key] = value ?? null;
    else if (value !== undefined && value !== null) {
      const hint = Object.hasOwn(hints, key) ? hints[key] : `there is ${Object.keys(known).join(", ")}`;
      problems.push({ path: key, message: `unknown key ${shown(key)}: ${hint}` });
    }
  }
}

function checkExpiry(expires, wrong) {
  if (expires !== null && !(Number.isSafeInteger(expires) && expires >= 1)) {
    wrong("expires_in", expires, "write whole seconds, at least 1");
  }
  return expires;
}

function checkMethod(method, wrong) {
  if (METHODS.includes(method)) return method;
  const upper = typeof method === "string" ? method.toUpperCase() : "";
  if (METHODS.includes(upper)) wrong("method", method, `write ${upper}`);
  else if (upper === "CONNECT" || upper === "TRACE") wrong("method", method, `${upper} is never sent`);
  else wrong("method", method ?? undefined, `write one of ${METHODS.join(", ")}`);
  return null;
}

function plain(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function checkHeaders(given, wrong, text) {
  if (given === null) return null;
  if (given instanceof Headers) given = Object.fromEntries(given);
  if (!plain(given)) {
    wrong("headers", given, 'write an object, such as { "Content-Type": "application/json" }');
    return null;
  }
  const copied = text(given, "headers", { finite: true });
  if (copied === undefined) return null;
  const headers = {};
  let lines = 0;
  let bytes = 0;
  for (const [name, value] of Object.entries(JSON.parse(copied))) {
    if (value === null) continue;
    const path = join("headers", name);
    if (!TOKEN.test(name)) {
      wrong(path, name, "this is no header name");
      continue;
    }
    const values = Array.isArray(value) ? value : [value];
    const fits = (one) => typeof one === "string" || (typeof one === "number" && !Array.isArray(value));
    if (!values.every(fits)) {
      wrong(path, value, "write a string, a number or an array of strings");
      continue;
    }
    const bad = values.find((one) => !/^[\x20-\x7e]*$/.test(String(one)));
    if (bad !== undefined) {
      const secret = SECRET_HEADERS.has(name.toLowerCase());
      wrong(path, secret ? "[hidden]" : bad, "only visible ASCII characters may stand in a header");
      continue;
    }
    lines += values.length;
    for (const one of values) bytes += name.length + String(one).length;
    headers[name] = value;
  }
  if (lines > HEADERS) wrong("headers", `[${lines} lines]`, `at most ${HEADERS}`);
  if (bytes > HEADER_BYTES) wrong("headers", `[${bytes} bytes]`, `at most ${HEADER_BYTES} bytes`);
  return headers;
}

function checkParams(given, wrong, text) {
  if (given === null) return null;
  if (given instanceof URLSearchParams) {
    const pairs = given;
    given = {};
    for (const key of new Set(pairs.keys())) given[key] = pairs.getAll(key);
  }
  if (!plain(given)) {
    wrong("params", given, "write an object, such as { page: 2 }");
    return null;
  }
  const copied = text(given, "params", { finite: true });
  if (copied === undefined) return null;
  const params = {};
  for (const [key, value] of Object.entries(JSON.parse(copied))) {
    if (value === null) continue;
    const fits = (one) => ["string", "number", "boolean"].includes(typeof one);
    if (!(Array.isArray(value) ? value.every(fits) : fits(value))) {
      wrong(join("params", key), value, "write a string, a number, a boolean or an array of them");
      continue;
    }
    params[key] = value;
  }
  return params;
}

function checkAuth(given, problems, wrong) {
  if (given === null) return null;
  if (!plain(given)) {
    wrong("auth", typeof given === "object" ? "[array]" : `[${typeof given}]`, "write { username, password }");
    return null;
  }
  const { username, password } = given;
  // The value may be the secret itself, put into the wrong member: only its type is named.
  for (const [name, value] of Object.entries({ username, password })) {
    if (typeof value !== "string") wrong(`auth.${name}`, value === undefined ? undefined : `[${typeof value}]`, "write a string");
  }
  for (const key of Object.keys(given)) {
    if (key !== "username" && key !== "password") {
      problems.push({ path: join("auth", key), message: `unknown key ${join("auth", key)}: there is username and password` });
    }
  }
  if (typeof username === "string" && username.includes(":")) {
    wrong("auth.username", "[hidden]", "a username of HTTP Basic has no colon");
  }
  return { username, password };
}

function contentType(headers) {
  for (const [name, value] of Object.entries(headers ?? {})) {
    if (name.toLowerCase() === "content-type") return String(Array.isArray(value) ? value[0] : value).toLowerCase();
  }
  return null;
}

/** The body as one member of the API's item: `data` or `data_base64`. */
function checkBody(known, method, headers, limits, problems, wrong, text) {
  const { data, data_base64: base64 } = known;
  if (data === null && base64 === null) return null;
  if (data !== null && base64 !== null) {
    problems.push({ path: "data_base64", message: "data and data_base64 were both given: write one of them" });
    return null;
  }
  const name = data === null ? "data_base64" : "data";
  if (method === "HEAD") {
    problems.push({ path: name, message: `${name} was given with HEAD, which has no body: leave it out, or write another method` });
    return null;
  }
  const room = (bytes, what) => {
    if (bytes > limits.requestBodyBytes) {
      wrong(name, `[${bytes} bytes${what}]`, `at most ${limits.requestBodyBytes} bytes are sent`);
    }
  };
  if (base64 !== null) {
    if (typeof base64 !== "string" || !/^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(base64)) {
      wrong("data_base64", base64, "write standard base64 with its padding");
      return null;
    }
    room(Buffer.byteLength(base64, "base64"), "");
    return { name, text: JSON.stringify(base64) };
  }
  if (ArrayBuffer.isView(data) || data instanceof ArrayBuffer) {
    const bytes = data instanceof ArrayBuffer ? Buffer.from(data) : Buffer.from(data.buffer, data.byteOffset, data.byteLength);
    room(bytes.length, "");
    return { name: "data_base64", text: JSON.stringify(bytes.toString("base64")) };
  }
  for (const [type, instead] of [["FormData", "an object with the form's Content-Type"], ["Blob", "its bytes"], ["ReadableStream", "its bytes"]]) {
    if (globalThis[type] !== undefined && data instanceof globalThis[type]) {
      wrong("data", `[object ${type}]`, `write ${instead}`);
      return null;
    }
  }
  const form = contentType(headers)?.startsWith(FORM) ?? false;
  const written = text(data, "data");
  if (written === undefined) return null;
  if (form && typeof data === "object") {
    const members = JSON.parse(written);
    if (Array.isArray(members)) wrong("data", members, "a form has no list; write an object of plain values");
    else {
      for (const [key, value] of Object.entries(members)) {
        if (value !== null && typeof value === "object") wrong(join("data", key), value, "a form has no nested values; send JSON, or flatten it");
      }
    }
  }
  room(typeof data === "string" ? Buffer.byteLength(data) : Buffer.byteLength(written), typeof data === "string" ? "" : " of JSON");
  return { name, text: written };
}
