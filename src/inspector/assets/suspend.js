// Stopping a tenant, a workflow or a host from where its sends are looked at.

import { ask } from "./api.js";
import { foreign, h, note, replace } from "./dom.js";
import { count } from "./format.js";

/** What is asked for, in words. */
function said({ tenant, workflow, host }) {
  if (host) return `every tenant's sends to ${host}`;
  return workflow ? `workflow ${workflow} of tenant ${tenant}` : `tenant ${tenant}`;
}

/** Suspends, and says how much that hit. */
export async function suspend(call) {
  const { hit } = await ask("/v1/suspensions", { method: "POST", body: JSON.stringify(call), tenant: null });
  note(`Suspended: ${count(hit)} waiting ${hit === 1 ? "send" : "sends"} ended.`, "good");
}

export function refusalOf(error) {
  return foreign([error.message, ...(error.errors ?? []).map((one) => `${one.pointer}: ${one.detail}`)].join(" · "));
}

/**
 * @param {object[]} choices  `{tenant}`, `{tenant, workflow}` or `{host}`, the first one chosen
 * @param {() => void} [then]
 */
export function openSuspend(choices, then) {
  const reason = h("input", { name: "reason", required: true, autocomplete: "off", placeholder: "What happened, and who asked" });
  const problem = h("p", { class: "form-problem", role: "alert", hidden: true });
  const dialog = h("dialog", { class: "dialog", "aria-labelledby": "suspend-title", onclose: () => dialog.remove() },
    h("form", { method: "dialog", onsubmit: async (event) => {
      event.preventDefault();
      const chosen = choices[Number(new FormData(event.target).get("what"))];
      try {
        await suspend({ ...chosen, reason: reason.value.trim() });
        dialog.close();
        then?.();
      } catch (error) {
        problem.hidden = false;
        replace(problem, refusalOf(error));
      }
    } },
      h("h2", { id: "suspend-title" }, "Suspend"),
      h("fieldset", { class: "choices" }, h("legend", { class: "offscreen" }, "What"), choices.map((one, at) =>
        h("label", {}, h("input", { type: "radio", name: "what", value: String(at), checked: at === 0 }), h("span", {}, foreign(said(one), { limit: 400 }))))),
      h("label", { class: "field" }, h("span", {}, "Reason"), reason),
      h("p", { class: "dim" }, "What is queued or held ends blocked at once and is never sent."), problem,
      h("div", { class: "dialog-end" }, h("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Cancel"), h("button", { class: "button primary" }, "Suspend"))));
  document.body.append(dialog);
  dialog.showModal();
}
