// The errors that this package throws, each for one reader: the author of a step, or whoever runs workflows.

/** A wrong call of `$.send.http`, thrown at once in the step that made it. */
export class SendCallError extends TypeError {
  /** @param {string} caller  @param {{path: string, message: string}[]} problems */
  constructor(caller, problems) {
    super(`${caller}: ${problems.map((problem) => problem.message).join("; ")}`);
    this.name = "SendCallError";
    this.problems = problems;
  }
}

/**
 * Something collected was not handed over, or was handed over and not yet released.
 *
 * `unsent`, `refused` and `resume` hold what the author wrote, secrets included, so they are not enumerable: logging
 * the error does not print them.
 */
export class HandOverError extends Error {
  constructor(message, { cause, execution, accepted, unsent, refused, released, finished, resume, status, code }) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "HandOverError";
    this.execution = execution;
    this.accepted = accepted;
    this.finished = finished;
    this.released = released;
    this.status = status;
    this.code = code;
    for (const [name, value] of Object.entries({ unsent, refused, resume })) {
      Object.defineProperty(this, name, { value, enumerable: false });
    }
  }
}

/** The API could not be asked, or answered something else than was asked for. */
export class ApiError extends Error {
  constructor(message, { status = null, code = null, errors = [], retryAfter = null, again = false, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.errors = errors;
    /** Seconds, where the API named any. */
    this.retryAfter = retryAfter;
    /** The same call may succeed later. */
    this.again = again;
  }
}
