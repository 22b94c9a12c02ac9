/* What the clients (load.c, drive.c) and servers (limit.c, bare.c) share: time, CPU, descriptors, sockets, epoll,
 * files, bytes that wait for more of their kind, and what is whole: a WebSocket frame, an HTTP answer. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))

enum { CLOSE = 8, PING = 9, PONG = 10, TEXT = 1, BUFFER_BYTES = 1 << 18, EVENTS = 512 };

/* RFC 6455 section 1.3: the key of the client, and what the server makes of it. */
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

UNUSED __attribute__((noreturn)) static void die(const char *what) {
  fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "not as expected");
  exit(1);
}

UNUSED static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* CPU that this process has used, user and system. */
UNUSED static uint64_t cpu_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

UNUSED static void pin(int core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(core, &cores);
  if (sched_setaffinity(0, sizeof cores, &cores)) die("--core");
}

UNUSED static void allow_descriptors(unsigned needed) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit)) die("getrlimit");
  if (limit.rlim_cur >= needed) return;
  limit.rlim_cur = needed;
  if (setrlimit(RLIMIT_NOFILE, &limit)) die("too many connections for RLIMIT_NOFILE");
}

static void no_delay(int fd) {
  int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* ---- sockets */

static int poller = -1;

UNUSED static void watch(int fd, int64_t key, uint32_t events, int operation) {
  struct epoll_event event = {.events = events, .data.u64 = (uint64_t)key};
  if (epoll_ctl(poller, operation, fd, &event)) die("epoll_ctl");
}

static struct sockaddr_in loopback(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

UNUSED static int dial(int port, int flags) {
  struct sockaddr_in address = loopback(port);
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
  if (fd < 0) die("socket");
  no_delay(fd);
  if (connect(fd, (void *)&address, sizeof address) && errno != EINPROGRESS) die("connect");
  return fd;
}

UNUSED static int listen_at(int port) {
  struct sockaddr_in address = loopback(port);
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (void *)&address, sizeof address) || listen(fd, 4096)) die("the port");
  return fd;
}

/* Its end leaves no TIME_WAIT: the next benchmark needs the ports. */
UNUSED static void end_at_once(int fd) {
  struct linger at_once = {1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}

/* ---- files */

UNUSED static void *room_for(void *old, size_t bytes) {
  void *room = realloc(old, bytes);
  if (!room) die("memory");
  return room;
}

/* A whole file, and a zero behind it. */
UNUSED static char *content_of(const char *name, size_t *size) {
  FILE *file = fopen(name, "rb");
  if (!file) die(name);
  char *text = NULL;
  size_t room = 0;
  *size = 0;
  do {
    text = room_for(text, room += 1 << 16);
    *size += fread(text + *size, 1, room - *size - 1, file);
  } while (*size == room - 1);
  fclose(file);
  text[*size] = 0;
  return text;
}

/* ---- what is whole */

UNUSED static int begins(const char *bytes, size_t size, const char *with) {
  return size >= strlen(with) && !memcmp(bytes, with, strlen(with));
}

/* The size of the HTTP answer that these bytes start with; 0 while it is not complete. */
UNUSED static size_t answer_size(char *bytes, size_t size) {
  static const char length[] = "content-length:";
  char *end = memmem(bytes, size, "\r\n\r\n", 4);
  if (!end) return 0;
  *end = 0; /* for strcasestr */
  const char *said = strcasestr(bytes, length);
  *end = '\r';
  size_t whole = (size_t)(end + 4 - bytes) + (said ? strtoul(said + sizeof length - 1, NULL, 10) : 0);
  return size < whole ? 0 : whole;
}

/* The start of something that has not come as a whole yet. */
typedef struct {
  char *bytes;
  uint32_t size;
} tail_t;

/* Move what waits to the front of `buffer`; returns its size. */
UNUSED static size_t take_tail(tail_t *tail, char *buffer) {
  size_t size = tail->size;
  if (!size) return 0;
  memcpy(buffer, tail->bytes, size);
  free(tail->bytes);
  *tail = (tail_t){0};
  return size;
}

UNUSED static void keep_tail(tail_t *tail, const char *bytes, size_t size) {
  if (!size) return;
  if (!(tail->bytes = malloc(size))) die("malloc");
  memcpy(tail->bytes, bytes, size);
  tail->size = (uint32_t)size;
}

/* A WebSocket frame (RFC 6455 section 5.2) at the start of some bytes. */
typedef struct {
  uint8_t *payload;
  size_t size;   /* of the payload */
  size_t length; /* of all of it */
  uint8_t opcode, first, is_masked;
} frame_t;

/* False while it is not complete. */
UNUSED static int parse_frame(char *bytes, size_t size, frame_t *frame) {
  uint8_t *b = (uint8_t *)bytes;
  if (size < 2) return 0;
  size_t head = 2, length = b[1] & 127u;
  if (length == 126) {
    if (size < 4) return 0;
    length = (size_t)b[2] << 8 | b[3];
    head = 4;
  } else if (length == 127) {
    if (size < 10) return 0;
    for (length = 0; head < 10; head++) length = length << 8 | b[head];
  }
  uint8_t *mask = b[1] & 128u ? b + head : NULL;
  head += mask ? 4 : 0;
  if (length > BUFFER_BYTES - 16) die("frame too big");
  if (size < head + length) return 0;
  *frame = (frame_t){b + head, length, head + length, b[0] & 15u, b[0], mask != NULL};
  for (size_t i = 0; mask && i < length; i++) frame->payload[i] ^= mask[i & 3];
  return 1;
}

/* A whole frame, masked (with zeros, which change nothing) as a client's or not; returns its size. */
UNUSED static size_t make_frame(char *out, int opcode, const char *payload, size_t size, int is_masked) {
  size_t head = 2;
  out[0] = (char)(0x80 | opcode);
  if (size < 126) {
    out[1] = (char)size;
  } else {
    if (size > 65535) die("frame too big");
    out[1] = 126;
    out[2] = (char)(size >> 8);
    out[3] = (char)size;
    head = 4;
  }
  if (is_masked) {
    out[1] = (char)(out[1] | 0x80);
    memset(out + head, 0, 4);
    head += 4;
  }
  memcpy(out + head, payload, size);
  return head + size;
}
