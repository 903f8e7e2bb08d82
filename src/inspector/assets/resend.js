// Sending again: a new send with the same request. Never by itself, and never without saying what that may mean.

import { ask, Problem } from "./api.js";
import { bodyOf } from "./body.js";
import { foreign, h, note, replace } from "./dom.js";
import { bytes, part } from "./format.js";
import { headerValue } from "./headers.js";
import { asked } from "./words.js";

const REDACTED = /^\[redacted /;

/** What the record does not hold of the request, so that the caller has to give it. */
export function missing(record) {
  const { request, email } = record;
  const event = record.s3 ?? record.sql;
  if (event) return { headers: [], body: false, event: event.payload === null || JSON.stringify(event.payload).includes("[redacted ") };
  if (email) {
    const texts = [email.subject, email.text, email.html].filter((text) => typeof text === "string");
    return { headers: [], body: false, email: (email.text === null && email.html === null) || texts.some((text) => text.includes("[redacted ")) };
  }
  const headers = [];
  for (const [name, values] of Object.entries(request.headers ?? {})) {
    if ([values].flat().some((value) => REDACTED.test(value))) headers.push(name);
  }
  const kept = bodyOf(request);
  const body = (request.body_bytes ?? 0) > 0
    && (kept === null || request.body_truncated || request.body_sha256 === null || request.body_sha256 === undefined);
  return { headers, body };
}

export function openResend(record) {
  const lacking = missing(record);
  const what = asked(record);
  const fields = [];
  const known = new Map();
  const field = (key, label, input, hint) => {
    if (known.has(key)) return;
    known.set(key, input);
    fields.push(h("label", { class: "field" }, h("span", {}, label), input, hint ? h("small", {}, hint) : null));
  };
  const secretField = (name) => {
    if (name === "authorization") {
      field("auth.username", "Username (HTTP Basic)", h("input", { autocomplete: "off", name: "username" }), "Leave empty to give the whole Authorization header below instead.");
      field("auth.password", "Password", h("input", { type: "password", autocomplete: "off", name: "password" }));
    }
    field(`header.${name}`, name, h("input", { type: "password", autocomplete: "off", name: `header ${name}` }));
  };
  const bodyField = () => {
    const size = record.request.body_bytes ?? 0;
    const kept = bodyOf(record.request);
    field("data", "Body", h("textarea", { rows: 6, spellcheck: "false", name: "data" }),
      kept === null ? `The body of ${bytes(size)} is no longer kept: give it again.` : "The kept body is redacted or cut: give it again, whole.");
  };
  const emailFields = () => {
    field("email.subject", "Subject", h("input", { autocomplete: "off", name: "subject" }), "The kept message is redacted or no longer there: give it again, whole.");
    field("email.text", "Text", h("textarea", { rows: 6, name: "text" }));
    field("email.html", "HTML", h("textarea", { rows: 4, spellcheck: "false", name: "html" }), "Text, HTML or both.");
  };
  const eventFields = () => field("payload", "Payload (JSON)", h("textarea", { rows: 6, spellcheck: "false", name: "payload" }), "The kept payload is redacted or no longer there: give it again, whole.");
  for (const name of lacking.headers) secretField(name);
  if (lacking.email) emailFields();
  if (lacking.event) eventFields();
  if (lacking.body) bodyField();

  const problem = h("div", { class: "form-problem", role: "alert", hidden: true });
  const box = h("div", {}, fields);
  const go = h("button", { type: "submit", class: "button primary" }, "Send again");
  const dialog = h("dialog", { class: "dialog", "aria-labelledby": "resend-title", onclose: () => dialog.remove() },
    h("form", { method: "dialog", onsubmit: (event) => {
      event.preventDefault();
      submit();
    } },
      h("h2", { id: "resend-title" }, "Send again"),
      h("p", {}, h("b", {}, foreign(what.method)), " ", foreign(what.url, { limit: 300 })),
      warning(record),
      h("p", { class: "dim" }, "This makes a new send with the same request, linked to this one. It has its own record."),
      box, problem,
      h("div", { class: "dialog-end" },
        h("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Cancel"), go)));
  document.body.append(dialog);
  dialog.showModal();

  async function submit() {
    go.disabled = true;
    problem.hidden = true;
    try {
      const tenant = record.context?.tenant;
      const made = await ask(`/v1/sends/${part(record.id)}/resend`, {
        method: "POST", body: body(record, known), ...(tenant ? { tenant } : {}),
      });
      dialog.close();
      note("Sent again, as a new send.", "good");
      location.hash = `#/sends/${part(made.id)}`;
    } catch (error) {
      go.disabled = false;
      if (!(error instanceof Problem)) throw error;
      // The API knows better than the record's looks what is missing.
      for (const { pointer } of error.errors) {
        const header = /^\/headers\/(.+)$/.exec(pointer ?? "");
        if (header) secretField(header[1].replaceAll("~1", "/").replaceAll("~0", "~"));
        else if (/^\/auth/.test(pointer ?? "")) secretField("authorization");
        else if (/^\/data/.test(pointer ?? "")) bodyField();
        else if (/^\/email/.test(pointer ?? "")) emailFields();
        else if (/^\/(s3|sql)/.test(pointer ?? "")) eventFields();
      }
      replace(box, fields);
      problem.hidden = false;
      replace(problem, foreign(error.message), error.errors.length === 0 ? null
        : h("ul", {}, error.errors.map((one) => h("li", {}, h("code", {}, foreign(one.pointer ?? "")), " ", foreign(one.detail ?? ""), one.hint ? [" (", foreign(one.hint), ")"] : null))));
    }
  }
}

/**
 * What is known of whether the receiver has the request: `"no"`, `"maybe"` or `"yes"`. The record says it where the
 * send ended in an error; a complete answer says it too, and one that refuses may have done a part.
 */
export function processed(record) {
  if (record.error?.processed) return record.error.processed;
  return record.outcome === "delivered" ? "yes" : record.outcome === "rejected" ? "maybe" : "no";
}

function warning(record) {
  const { status } = record.response ?? {};
  switch (processed(record)) {
    case "yes":
      return h("div", { class: "warning strong", role: "alert" },
        h("p", {}, h("b", {}, `The receiver has this request already${status ? ` and answered ${status}` : ""}. `), "Sent again, it may be done twice."),
        h("label", { class: "agree" }, h("input", { type: "checkbox", name: "agree", required: true }), "Send it all the same"));
    case "maybe":
      return h("p", { class: "warning", role: "alert" },
        h("b", {}, status ? `The receiver answered ${status}, and may have done a part of it. ` : "The receiver may have this request. "),
        "Ask there first: sent again, it may be done twice.");
    default: return null;
  }
}

/** The call's body as JSON text: a JSON body keeps its own bytes. */
function body(record, known) {
  const members = [];
  const value = (key) => known.get(key)?.value ?? "";
  const basic = value("auth.username") !== "" || value("auth.password") !== "";
  if (basic) members.push(`"auth":${JSON.stringify({ username: value("auth.username"), password: value("auth.password") })}`);
  const headers = {};
  for (const [key, input] of known) {
    if (key.startsWith("header.") && input.value !== "" && !(basic && key === "header.authorization")) headers[key.slice(7)] = input.value;
  }
  if (Object.keys(headers).length > 0) members.push(`"headers":${JSON.stringify(headers)}`);
  const email = {};
  for (const key of ["subject", "text", "html"]) {
    if (value(`email.${key}`) !== "") email[key] = value(`email.${key}`);
  }
  if (Object.keys(email).length > 0) {
    if (record.email?.include_collaborators) email.include_collaborators = true;
    members.push(`"email":${JSON.stringify(email)}`);
  }
  if (value("payload") !== "") {
    const { bucket, prefix } = record.s3 ?? {};
    const place = record.s3 ? `"s3":{"bucket":${JSON.stringify(bucket)},"prefix":${JSON.stringify(prefix)}` : `"sql":{"table":${JSON.stringify(record.sql.table)}`;
    members.push(`${place},"payload":${value("payload")}}`);
  }
  const text = value("data");
  if (text !== "") {
    const type = headerValue(record.request?.headers, "content-type") ?? "";
    let json = false;
    if (/json/i.test(type)) {
      try {
        const parsed = JSON.parse(text);
        json = parsed !== null && typeof parsed === "object";
      } catch {
        // Sent as the text it is.
      }
    }
    members.push(`"data":${json ? text : JSON.stringify(text)}`);
  }
  return `{${members.join(",")}}`;
}
