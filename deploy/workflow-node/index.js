// `$.send.http` for workflow nodes: collected during a run, handed to egressd when it ends.

export { connect, defineComponent, installGlobals } from "./lib/connect.js";
export { sendDestination } from "./lib/destination.js";
export { ApiError, HandOverError, SendCallError } from "./lib/errors.js";
export { LIMITS } from "./lib/limits.js";
export { default as sendHttpRequest } from "./lib/send-http-request.js";
