// The API's own limits as it has them by default; `connect({ limits })` takes others where an operator moved them.

const MIB = 1024 * 1024;

export const LIMITS = Object.freeze({
  /** Items of one API call. */
  sendsPerRequest: 1000,
  /** Bytes of one API call. */
  apiRequestBytes: 16 * MIB,
  /** Sends of one execution. */
  sendsPerExecution: 10_000,
  /** Bytes of one send's body. */
  requestBodyBytes: MIB,
  /** Bytes that one run may collect: they wait in this process's memory. */
  collectedBytes: 256 * MIB,
});

/** Longest text of a `context` value, in characters. */
export const CONTEXT_CHARS = 256;
/** Longest prefix of a place in a bucket. */
export const PREFIX_BYTES = 512;
/** Longest subject of a message, in characters. */
export const SUBJECT_CHARS = 500;
export const HEADERS = 100;
export const HEADER_BYTES = 32 * 1024;

/** Most bytes of an answer of the API that are read. */
export const ANSWER_BYTES = 64 * MIB;
