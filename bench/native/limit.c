/* The limit: what a server could do at best. Accepts WebSockets, answers pings, and writes the body of a POST as one
 * frame to all of them with nothing but send() in a loop. No users, no journal, no buffers: a socket that does not
 * take the frame at once ends the program.
 *
 *     limit --port P --connections N [--core C]
 */
#include "common.h"

enum { HTTP, WEBSOCKET };

typedef struct {
  tail_t tail;
  int fd, index; /* index: in `sockets`, -1 for one that speaks HTTP */
} connection_t;

static connection_t **sockets;
static int sockets_total, sockets_most, listener;
static char buffer[BUFFER_BYTES];

/* ---- SHA-1 (FIPS 180-4) and base64, of the few bytes a handshake needs */

static uint32_t rotated(uint32_t x, int by) { return x << by | x >> (32 - by); }

static void sha1_block(uint32_t state[5], const uint8_t *block) {
  uint32_t w[80], a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
  for (int i = 0; i < 16; i++)
    w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
           block[4 * i + 3];
  for (int i = 16; i < 80; i++) w[i] = rotated(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
  for (int i = 0; i < 80; i++) {
    uint32_t f = i < 20   ? ((b & c) | (~b & d)) + 0x5A827999
                 : i < 40 ? (b ^ c ^ d) + 0x6ED9EBA1
                 : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8F1BBCDC
                          : (b ^ c ^ d) + 0xCA62C1D6;
    uint32_t next = rotated(a, 5) + f + e + w[i];
    e = d, d = c, c = rotated(b, 30), b = a, a = next;
  }
  state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

/* Sec-WebSocket-Accept of a key of 24 characters. */
static void accept_of(const char *key, char out[29]) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  uint32_t state[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
  uint8_t text[128] = {0}, sum[21] = {0};
  memcpy(text, key, 24);
  memcpy(text + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
  text[60] = 0x80;
  text[126] = 480 >> 8, text[127] = 480 & 255; /* bits */
  sha1_block(state, text);
  sha1_block(state, text + 64);
  for (int i = 0; i < 20; i++) sum[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
  for (int i = 0; i < 7; i++) {
    uint32_t three = (uint32_t)sum[3 * i] << 16 | (uint32_t)sum[3 * i + 1] << 8 | sum[3 * i + 2];
    for (int k = 0; k < 4; k++) out[4 * i + k] = digits[three >> (18 - 6 * k) & 63];
  }
  out[27] = '=';
  out[28] = 0;
}

/* ---- connections */

static void forget(connection_t *it) {
  if (it->index >= 0) {
    sockets[it->index] = sockets[--sockets_total];
    sockets[it->index]->index = it->index;
  }
  close(it->fd);
  free(it->tail.bytes);
  free(it);
}

static void say(int fd, const char *bytes, size_t size) {
  if (send(fd, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size) die("send");
}

static void broadcast(const char *frame, size_t size) {
  for (int i = 0; i < sockets_total; i++)
    if (send(sockets[i]->fd, frame, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size) die("broadcast");
}

static void upgrade(connection_t *it, const char *head) {
  static const char name[] = "\r\nSec-WebSocket-Key: ";
  char accept[29], answer[256];
  const char *key = strstr(head, name);
  if (!key || strlen(key) < sizeof name + 24 || sockets_total == sockets_most) die("handshake");
  accept_of(key + sizeof name - 1, accept);
  int size = snprintf(answer, sizeof answer,
                      "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
  say(it->fd, answer, (size_t)size);
  it->index = sockets_total;
  sockets[sockets_total++] = it;
}

/* One request at the start of `size` bytes; returns what it took, 0 while it is not complete. */
static size_t take_request(connection_t *it, char *bytes, size_t size) {
  static const char done[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", length[] = "\r\nContent-Length: ";
  char *end = memmem(bytes, size, "\r\n\r\n", 4);
  if (!end) return 0;
  size_t head = (size_t)(end + 4 - bytes);
  char first = end[3];
  end[3] = 0; /* for strstr */
  const char *said = strstr(bytes, length);
  size_t body = said ? strtoul(said + sizeof length - 1, NULL, 10) : 0;
  if (!strncmp(bytes, "GET ", 4)) upgrade(it, bytes);
  end[3] = first;
  if (strncmp(bytes, "POST ", 5)) return head;
  if (size < head + body) return 0;
  static char frame[BUFFER_BYTES];
  broadcast(frame, make_frame(frame, TEXT, bytes + head, body, 0));
  say(it->fd, done, sizeof done - 1);
  return head + body;
}

/* One frame; 0 while it is not complete, -1 when the connection is over. */
static ssize_t take_frame(connection_t *it, char *bytes, size_t size) {
  frame_t frame;
  char answer[160];
  if (!parse_frame(bytes, size, &frame)) return 0;
  if (frame.opcode == CLOSE) return -1;
  if (frame.opcode == PING) say(it->fd, answer, make_frame(answer, PONG, (char *)frame.payload, frame.size, 0));
  return (ssize_t)frame.length; /* acknowledgements are read and dropped */
}

static void readable(connection_t *it) {
  size_t had = take_tail(&it->tail, buffer), at = 0;
  ssize_t got = recv(it->fd, buffer + had, sizeof buffer - had, MSG_DONTWAIT);
  if (got <= 0 && !(got < 0 && errno == EAGAIN)) {
    forget(it);
    return;
  }
  size_t size = had + (size_t)(got > 0 ? got : 0);
  while (at < size) {
    ssize_t took = it->index >= 0 ? take_frame(it, buffer + at, size - at)
                                  : (ssize_t)take_request(it, buffer + at, size - at);
    if (took < 0) {
      forget(it);
      return;
    }
    if (!took) break;
    at += (size_t)took;
  }
  keep_tail(&it->tail, buffer + at, size - at);
}

static void accept_all(void) {
  for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
    connection_t *it = calloc(1, sizeof *it);
    if (!it) die("calloc");
    it->fd = fd;
    it->index = -1;
    no_delay(fd);
    watch(fd, (int64_t)(intptr_t)it, EPOLLIN, EPOLL_CTL_ADD);
  }
  if (errno != EAGAIN && errno != ECONNABORTED) die("accept");
}

int main(int argc, char **argv) {
  static const struct option options[] = {
      {"port", 1, 0, 'p'}, {"connections", 1, 0, 'n'}, {"core", 1, 0, 'c'}, {0}};
  struct epoll_event events[EVENTS];
  int port = 0;
  sockets_most = 1000;
  for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
    if (option == 'p') port = atoi(optarg);
    else if (option == 'n') sockets_most = atoi(optarg);
    else if (option == 'c') pin(atoi(optarg));
    else return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  allow_descriptors((unsigned)sockets_most + 64);
  if (!(sockets = calloc((size_t)sockets_most, sizeof *sockets))) die("calloc");
  poller = epoll_create1(EPOLL_CLOEXEC);
  listener = listen_at(port);
  watch(listener, 0, EPOLLIN, EPOLL_CTL_ADD);
  for (;;) {
    int count = epoll_wait(poller, events, EVENTS, -1);
    if (count < 0 && errno != EINTR) die("epoll_wait");
    for (int i = 0; i < count; i++)
      if (events[i].data.ptr) readable(events[i].data.ptr);
      else accept_all();
  }
}
