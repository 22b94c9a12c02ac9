/* What a client of NATS says and hears: lines, and behind that of a message its payload (docs.nats.io, "Client
 * Protocol"). The bytes are those of a TCP connection, or of the frames of a WebSocket, whose borders mean nothing. */

#define NATS_CONNECT \
  "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"c\",\"version\":\"1\",\"protocol\":1}\r\n"
#define NATS_PONG "PONG\r\n"

typedef struct {
  enum { NATS_OTHER, NATS_MESSAGE, NATS_PINGED, NATS_PONGED, NATS_REFUSED } what;
  char *payload; /* of a message */
  size_t size;   /* of the payload */
  size_t length; /* of all of it */
} nats_t;

/* What is at the start of some bytes; false while it is not complete. */
static int parse_nats(char *bytes, size_t size, nats_t *it) {
  char *end = memmem(bytes, size, "\r\n", 2);
  if (!end) return 0;
  *it = (nats_t){.length = (size_t)(end + 2 - bytes)};
  if (begins(bytes, size, "MSG ")) { /* MSG subject id size */
    char *last = memrchr(bytes, ' ', (size_t)(end - bytes));
    it->what = NATS_MESSAGE;
    it->payload = end + 2;
    it->size = strtoul(last, NULL, 10);
    it->length += it->size + 2;
    if (it->size > BUFFER_BYTES) die("message too big");
    return size >= it->length;
  }
  if (begins(bytes, size, "PING")) it->what = NATS_PINGED;
  if (begins(bytes, size, "PONG")) it->what = NATS_PONGED;
  if (begins(bytes, size, "-ERR")) it->what = NATS_REFUSED;
  return 1;
}
