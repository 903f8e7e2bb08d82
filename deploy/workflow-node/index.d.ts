/** What `$.send.http` takes. */
export interface HttpSend {
  method: "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS";
  url: string | URL;
  /**
   * The body: an object or array goes as JSON (or form-encoded, where `headers` say so), a string as it is, bytes as
   * they are. Taken at the call: changing the object later changes nothing.
   */
  data?: unknown;
  /** The body as base64, instead of `data`. */
  data_base64?: string | null;
  headers?: Record<string, string | number | readonly string[] | null | undefined> | Headers | null;
  /** Into the URL's query; an array repeats its key. */
  params?: Record<string, Param | readonly Param[] | null | undefined> | URLSearchParams | null;
  /** HTTP Basic. */
  auth?: { username: string; password: string } | null;
  /** Whole seconds after its release; not started by then, it is not made. */
  expires_in?: number | null;
}
type Param = string | number | boolean;

/** What `$.send.email` takes: `text`, `html` or both. It goes to the tenant's own address, and nowhere else. */
export interface EmailSend {
  /** One line. */
  subject?: string | null;
  text?: string | null;
  html?: string | null;
  /** To the collaborators that the operator has configured, too. */
  include_collaborators?: boolean | null;
  /** Whole seconds after its release; not started by then, it is not made. */
  expires_in?: number | null;
}

/** What `$.send.s3` takes: one line of an object that holds it with others. */
export interface S3Send {
  bucket: string;
  /** With or without its last `/`. */
  prefix: string;
  /** An object or an array as JSON, a string as its text. Taken at the call. */
  payload: object | string;
  /** Whole seconds after its release; not in a batch by then, it is not written. */
  expires_in?: number | null;
}

/** What `$.send.sql` takes: one row. */
export interface SqlSend {
  table: string;
  payload: object | string;
  expires_in?: number | null;
}

export interface Senders {
  /** Collects one request, to be made after the workflow finishes. There is no response to read. */
  http(send: HttpSend): undefined;
  /** Collects one message, to be sent after the workflow finishes. */
  email(send: EmailSend): undefined;
  /** Collects one event for a bucket. */
  s3(send: S3Send): undefined;
  /** Collects one event for a table. */
  sql(send: SqlSend): undefined;
  /** The platform's own, as `sse` is: they throw, and say how a platform makes them. Every other sender throws, naming what is supported. */
  readonly [sender: string]: (...args: any[]) => undefined;
}

/** What a step answers the workflow's caller with. */
export interface Response {
  status: number;
  headers: Record<string, any>;
  body: unknown;
  /** Given to `respond` at the call; otherwise when the steps are done. */
  immediate: boolean;
}

export interface Dollar {
  readonly send: Senders;
  /** `steps.NAME.KEY` to the steps that follow. */
  export(key: string, value: unknown): void;
  /** Answers the workflow's caller; the first answer counts. */
  respond(response: Partial<Response>): Promise<void>;
  readonly flow: {
    /** No further step runs; write `return $.flow.exit("why")`. What was sent until then is sent. */
    exit(reason?: string): void;
    [other: string]: any;
  };
  readonly context: { id: string; trace_id: string; workflow_id: string | null; workflow_name: string | null; ts: string; test: boolean; replay: boolean; [key: string]: any };
  [key: string]: any;
}

export interface Component {
  run(this: any, context: { steps: any; $: Dollar }): any;
  /** What `this` holds where the step's `props` give nothing: each one's `default`, copied for every run. */
  props?: Record<string, any>;
  methods?: Record<string, Function>;
  [key: string]: any;
}

export interface Limits {
  sendsPerRequest: number;
  apiRequestBytes: number;
  sendsPerExecution: number;
  requestBodyBytes: number;
  collectedBytes: number;
}
export const LIMITS: Readonly<Limits>;

export interface ConnectOptions {
  /** The API's address. Default: `EGRESSD_API`, or `http://127.0.0.1:8700`. */
  api?: string;
  /** Bearer token. Default: `EGRESSD_TOKEN`. */
  token?: string;
  /** Whose sends these are; needed where the token may name any tenant. */
  tenant?: string;
  /** Of Node's `https.Agent`: for mutual TLS, or a private authority. */
  tls?: { ca?: string | Uint8Array; cert?: string | Uint8Array; key?: string | Uint8Array; servername?: string };
  /** What becomes of the collected sends when the run throws. Default: `"discard"`. */
  onThrow?: "discard" | "send";
  /** Says so where a step awaits a send. Default: `NODE_ENV` is `development`. */
  development?: boolean;
  /** Milliseconds for all calls of one hand-over. Default: 30,000. */
  timeout?: number;
  /** Milliseconds for one call. Default: 10,000. */
  callTimeout?: number;
  /** Where the operator moved the API's own. */
  limits?: Partial<Limits>;
  log?: (level: "warn", message: string) => void;
}

export interface Accepted {
  id: string;
  step: string | null;
}

export interface Report {
  execution: string;
  /** Of the accepted sends, in call order. */
  ids: string[];
  sends: Accepted[];
  /** How many the API says it released. */
  released: number;
  /** How many were dropped because the run threw. */
  discarded: number;
}

/** The rest of a hand-over that failed; plain data. */
export interface Resume {
  version: 1;
  execution: string;
  calls: { key: string; sends: string[] }[];
  accepted: Accepted[];
  refused: Refused[];
}

export interface Refused {
  send: object;
  reason: string;
}

export interface Run {
  readonly execution: string;
  readonly workflow: string | null;
  readonly collected: number;
  readonly report: Report | null;
  readonly context: Dollar["context"];
  /** By step. */
  readonly exports: Record<string, Record<string, unknown>>;
  readonly response: Response | null;
  readonly exit: Exit | null;
  step<Base extends object = {}>(name: string, base?: Base): { $: Base & Dollar; $send: Senders };
  end(how?: { threw?: boolean; signal?: AbortSignal }): Promise<Report>;
}

export interface RunContext {
  /** Unique within the tenant. Default: a random one. */
  execution?: string;
  workflow?: string;
  signal?: AbortSignal;
  /** Over what `$.context` has of itself. */
  context?: object;
  /** Answers the workflow's caller, where a step calls `$.respond`. */
  respond?: (response: Response) => any;
}

/** Which step ended the workflow early, and why. */
export interface Exit {
  step: string;
  reason: string | null;
}

export interface WorkflowStep {
  name: string;
  /** A component, or an older step: `async (event, steps) => …`. */
  component: Component | ((event: any, steps: any) => any);
  /** What the component's `this` holds. */
  props?: object;
  /** The runner's own `$`. */
  $?: object;
}

export interface Egress {
  begin(context?: Omit<RunContext, "signal">): Run;
  run<T>(context: RunContext, work: (run: Run) => T | Promise<T>): Promise<{ value: T; report: Report }>;
  runWorkflow(workflow: RunContext & { event?: any; steps: WorkflowStep[] }): Promise<{ value: any; report: Report; response: Response | null; exit: Exit | null }>;
  resume(rest: Resume, how?: { signal?: AbortSignal }): Promise<Omit<Report, "discarded">>;
  finish(execution: string, how?: { signal?: AbortSignal }): Promise<{ released: number }>;
  discard(execution: string, how?: { signal?: AbortSignal }): Promise<{ discarded: number }>;
  close(): void;
}

export function connect(options?: ConnectOptions): Egress;
export function defineComponent<C extends Component>(component: C): C;
/** Puts `defineComponent` and the older `$send` into the global scope. */
export function installGlobals(target?: object): void;

/**
 * In every text `{{ expression }}` stands for a value over `$event` and `steps`; a text that is one `{{ expression }}`
 * alone is that value, of whatever type.
 */
export interface DestinationConfiguration {
  /** An address; values within it are percent-encoded. */
  url?: string;
  /** The same under its older name: give one of the two. */
  endpoint?: string;
  /**
   * A JavaScript expression, a text with `{{ expression }}`, or an object or array of them; `undefined` sends nothing.
   * Default: `"$event"`.
   */
  payload?: string | object;
  method?: HttpSend["method"] | string;
  headers?: HttpSend["headers"] | string;
  params?: HttpSend["params"] | string;
  auth?: HttpSend["auth"] | string;
  /** Milliseconds for one expression. Default: 1,000. */
  timeout?: number;
}
export function sendDestination(configuration: DestinationConfiguration): Component;

/** The component "Send HTTP Request", for a platform's list of actions. */
export const sendHttpRequest: Component;

/** A wrong call, thrown at once in the step that made it. */
export class SendCallError extends TypeError {
  readonly problems: { path: string; message: string }[];
}

/** Not everything that was collected was handed over and released. */
export class HandOverError extends Error {
  readonly execution: string;
  /** What egressd has. */
  readonly accepted: Accepted[];
  /** What it has not: the sends as they would have gone out, secrets included. Not enumerable. */
  readonly unsent: object[];
  /** Those of `unsent` that the API refused for what they are. Not enumerable. */
  readonly refused: Refused[];
  /** Whether what was accepted has been released. */
  readonly finished: boolean;
  readonly released: number | null;
  /** For `resume`; `null` where nothing is left that could be. Not enumerable. */
  readonly resume: Resume | null;
  readonly status: number | null;
  readonly code: string | null;
}

export class ApiError extends Error {
  readonly status: number | null;
  readonly code: string | null;
  readonly errors: { pointer: string; detail: string; hint?: string }[];
  readonly retryAfter: number | null;
  readonly again: boolean;
}
