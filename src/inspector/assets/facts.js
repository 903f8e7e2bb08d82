// What holds for every send: the published addresses, and, for operators, the sources and the deadline.

import { ask } from "./api.js";

const KEPT = 60_000;
let found = null;
let asked = 0;

/** `{prefixes, sources, deadline}`; what cannot be known is `null`. Asked at most once a minute. */
export async function facts({ fresh = false } = {}) {
  if (!fresh && found !== null && performance.now() - asked < KEPT) return found;
  asked = performance.now();
  found = (async () => {
    const [list, sources] = await Promise.all([
      ask("/public-ips.json", { tenant: null }).catch(() => null),
      // An operator's view; without the scope the page does without.
      ask("/v1/sources", { tenant: null }).catch(() => null),
    ]);
    return {
      list,
      prefixes: Array.isArray(list?.prefixes) ? list.prefixes : null,
      sources: Array.isArray(sources?.sources) ? sources.sources : null,
      deadline: typeof sources?.deadline_ms === "number" ? sources.deadline_ms : 5000,
      mailDeadline: typeof sources?.email_deadline_ms === "number" ? sources.email_deadline_ms : 15000,
    };
  })();
  return found;
}

export function addressOf(prefix) {
  return (prefix.ipv4Prefix ?? prefix.ipv6Prefix ?? "").replace(/\/(32|128)$/, "");
}

/** Whether an address stands in the list; `null` where the list is not known. */
export function isPublished(found, address) {
  if (!found?.prefixes) return null;
  return found.prefixes.some((prefix) => addressOf(prefix) === address);
}
