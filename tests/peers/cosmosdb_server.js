// A stranger's Cosmos DB server (@vercel/cosmosdb-server), made fit for SDKs of today.
//
// Prints its endpoint, runs until its standard input ends. Mended on the way out: its account
// document names an https endpoint with a certificate that has expired; its partition key ranges
// carry numbers where the service sends strings; what is missing comes back as 500 when its
// container is empty. Everything else is the package's own answer.

const http = require("http");
const { createHttpServer } = require("@vercel/cosmosdb-server");

const inner = createHttpServer({ keepAlive: true });

function mend(request, status, body) {
  if (request.url === "/" || request.url === "") {
    return [status, body.replaceAll("https://", "http://").replaceAll(`:${inner.address().port}/`, `:${outer.address().port}/`)];
  }
  if (/\/pkranges\/?$/.test(request.url) && status === 200) {
    const ranges = JSON.parse(body);
    for (const range of ranges.PartitionKeyRanges) {
      range.id = String(range.id);
    }
    return [status, JSON.stringify(ranges)];
  }
  if (request.method === "GET" && /\/docs\/[^/]+$/.test(request.url) && status === 500) {
    return [404, JSON.stringify({ code: "NotFound", message: "mended" })];
  }
  return [status, body];
}

const outer = http.createServer((request, response) => {
  const { port } = inner.address();
  const options = { port, host: "127.0.0.1", path: request.url, method: request.method, headers: request.headers };
  const forward = http.request(options, (answer) => {
    const chunks = [];
    answer.on("data", (chunk) => chunks.push(chunk));
    answer.on("end", () => {
      const [status, body] = mend(request, answer.statusCode, Buffer.concat(chunks).toString());
      const headers = { ...answer.headers };
      delete headers["transfer-encoding"];
      delete headers["connection"];
      headers["content-length"] = Buffer.byteLength(body);
      response.writeHead(status, headers);
      response.end(body);
    });
  });
  forward.on("error", (error) => {
    response.writeHead(502);
    response.end(String(error));
  });
  request.pipe(forward);
});

inner.listen(0, "127.0.0.1", () => {
  outer.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${outer.address().port}/`));
});
process.stdin.on("end", () => process.exit(0)).resume();
