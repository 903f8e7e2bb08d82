// One request by a client of Node.js: client.cjs undici|axios PROXY URL; prints the answer's body.
const { readFileSync } = require("node:fs");

const [, , name, proxy, url] = process.argv;
const ca = readFileSync(process.env.CA);

async function undici() {
  const { ProxyAgent, fetch } = require("undici");
  const dispatcher = new ProxyAgent({ uri: proxy, requestTls: { ca }, proxyTls: { ca } });
  return (await fetch(url, { dispatcher })).text();
}

async function axios() {
  const { HttpsProxyAgent } = require("https-proxy-agent");
  const { protocol, hostname, port, username, password } = new URL(proxy);
  // For https its own way of asking a proxy is no tunnel.
  const way = url.startsWith("https:")
    ? { proxy: false, httpsAgent: new HttpsProxyAgent(proxy, { ca }) }
    : { proxy: { protocol, host: hostname, port: Number(port), auth: { username, password } } };
  if (way.httpsAgent) way.httpsAgent.options.ca = ca;
  const answer = await require("axios").default.get(url, { ...way, responseType: "text", transformResponse: (body) => body });
  return answer.data;
}

({ undici, axios })[name]().then(
  (body) => process.stdout.write(body),
  (error) => {
    console.error(String(error.cause ?? error));
    process.exit(1);
  },
);
