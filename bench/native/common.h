/* What the load client and the limit server share: time, CPU, descriptors, and bytes that wait for more of their kind. */
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

enum { CLOSE = 8, PING = 9, PONG = 10, TEXT = 1, BUFFER_BYTES = 1 << 18, EVENTS = 512 };

/* RFC 6455 section 1.3: the key of the client, and what the server makes of it. */
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

__attribute__((noreturn, unused)) static void die(const char *what) {
  fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "not as expected");
  exit(1);
}

__attribute__((unused)) static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* CPU that this process has used, user and system. */
__attribute__((unused)) static uint64_t cpu_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void pin(int core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(core, &cores);
  if (sched_setaffinity(0, sizeof cores, &cores)) die("--core");
}

static void allow_descriptors(unsigned needed) {
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

/* The start of something that has not come as a whole yet. */
typedef struct {
  char *bytes;
  uint32_t size;
} tail_t;

/* Move what waits to the front of `buffer`; returns its size. */
static size_t take_tail(tail_t *tail, char *buffer) {
  size_t size = tail->size;
  if (!size) return 0;
  memcpy(buffer, tail->bytes, size);
  free(tail->bytes);
  *tail = (tail_t){0};
  return size;
}

static void keep_tail(tail_t *tail, const char *bytes, size_t size) {
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
  uint8_t opcode, first;
} frame_t;

/* False while it is not complete. */
static int parse_frame(char *bytes, size_t size, frame_t *frame) {
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
  *frame = (frame_t){b + head, length, head + length, b[0] & 15u, b[0]};
  for (size_t i = 0; mask && i < length; i++) frame->payload[i] ^= mask[i & 3];
  return 1;
}

/* A whole frame, masked (with zeros, which change nothing) as a client's or not; returns its size. */
static size_t make_frame(char *out, int opcode, const char *payload, size_t size, int is_masked) {
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
