// Node's ws: what is said at /publish is sent to every other connection. node ws.js PORT
const { WebSocketServer } = require("ws");

const clients = new Set();
const server = new WebSocketServer({
  host: "127.0.0.1", port: Number(process.argv[2]), backlog: 4096, perMessageDeflate: false, clientTracking: false,
});

function broadcast(data) {
  for (const client of clients) client.send(data, { binary: false });
}

server.on("connection", (socket, request) => {
  if (request.url === "/publish") {
    socket.on("message", broadcast);
    return;
  }
  clients.add(socket);
  socket.on("close", () => clients.delete(socket));
});
