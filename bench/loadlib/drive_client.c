// A load client in one thread: WebSocket clients, publishers over HTTP, and a log of all that happened to them.
//
// It judges nothing: what came when goes into binary files, and bench/loadlib/drive_log.py says whether it is right.
//
//   drive serve PORT                     the least an HTTP server can do: how fast the publishers are by themselves
//   drive run DIRECTORY PORT MEMBERS AT_ONCE PUBLISHERS DELIVERIES ACKS VISITS_PER_S STAY_MS WITHIN_S
//
// DIRECTORY/handshakes: MEMBERS upgrade requests, then those of visitors, each behind its length (u32).
// DIRECTORY/requests: due (u64, ns after the start; 0 = as soon as possible), length (u32), a whole HTTP request.
// Little-endian, like the files it writes: see the structs below that end in _row.
//
// run: connects MEMBERS, AT_ONCE at a time, says "connected"; at a line on stdin sends the requests and lets visitors
// come and go; when every request is answered and DELIVERIES notices have reached members, or after WITHIN_S, says
// "done"; holds the connections until stdin ends. A notice's content begins with # and its number.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 1 << 18, ACK_BYTES = 3500, EVENTS_AT_ONCE = 1024, NOBODY = -1, STDIN_KEY = -1, SERVER_KEY = -2 };
enum { UNUSED, CONNECTING, UPGRADING, OPEN, CLOSING, CLOSED, FAILED };
enum { CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };

typedef struct { uint64_t began, upgraded, hello; uint32_t state, pings; } connect_row;      // ns, CLOCK_MONOTONIC
typedef struct { uint64_t due, sent, answered; uint32_t status, accepted; } request_row;     // accepted: notices
typedef struct { uint64_t at; uint32_t number, client; } delivery_row;

typedef struct { char *data; size_t size, room; } buffer;
typedef struct { int fd, state; buffer in; uint64_t leaves; connect_row row; } client;
typedef struct { int fd; int64_t request; buffer in; } publisher;
typedef struct { const char *bytes; uint32_t length; uint64_t due; } message;

static int ep, port, acks, at_once, members, clients_total, publishers_total;
static client *clients;
static publisher *publishers;
static message *handshakes, *requests;
static size_t requests_total, next_request, answered_total;
static request_row *request_rows;
static delivery_row *deliveries;
static size_t deliveries_total, deliveries_room, member_deliveries;
static int opened, failed, closed, under_way, next_client;
static uint64_t started, stray_frames;
static char read_bytes[READ_BYTES];

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double cpu_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what) {
  fprintf(stderr, "drive: %s: %s\n", what, strerror(errno));
  exit(2);
}

static void *room_for(void *old, size_t bytes) {
  void *new = realloc(old, bytes);
  if (!new) die("memory");
  return new;
}

static void append(buffer *b, const char *bytes, size_t count) {
  if (b->size + count > b->room) b->data = room_for(b->data, b->room = 2 * (b->size + count));
  memcpy(b->data + b->size, bytes, count);
  b->size += count;
}

static void drop(buffer *b, size_t count) {  // an empty buffer costs nothing
  b->size -= count;
  if (b->size) {
    memmove(b->data, b->data + count, b->size);
  } else if (b->room) {
    free(b->data);
    *b = (buffer){0};
  }
}

// A socket that cannot take a whole request at once is beyond what this client is for.
static int put(int fd, const char *bytes, size_t count) {
  return send(fd, bytes, count, MSG_NOSIGNAL) == (ssize_t)count;
}

static void watch(int fd, uint32_t events, int64_t key) {
  struct epoll_event event = {.events = events, .data.u64 = (uint64_t)key};
  if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

static int dial(int flags) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0), one = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (fd < 0) die("socket");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(fd, (void *)&address, sizeof address) && errno != EINPROGRESS) die("connect");
  return fd;
}

// ---- files

static char *file(const char *directory, const char *name, size_t *size) {
  char path[4096];
  struct stat about;
  snprintf(path, sizeof path, "%s/%s", directory, name);
  FILE *f = fopen(path, "rb");
  if (!f || fstat(fileno(f), &about)) die(path);
  char *data = room_for(NULL, (size_t)about.st_size + 1);
  *size = fread(data, 1, (size_t)about.st_size, f);
  fclose(f);
  return data;
}

static message *messages(const char *directory, const char *name, int has_due, size_t *total) {
  size_t size, at = 0, room = 0;
  char *data = file(directory, name, &size);
  message *found = NULL;
  for (*total = 0; at < size; ++*total) {
    if (*total == room) found = room_for(found, (room = 2 * room + 64) * sizeof *found);
    message m = {0};
    if (has_due) memcpy(&m.due, data + at, 8), at += 8;
    memcpy(&m.length, data + at, 4), at += 4;
    m.bytes = data + at, at += m.length;
    found[*total] = m;
  }
  return found;
}

static void save(const char *directory, const char *name, const void *rows, size_t size) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  FILE *f = fopen(path, "wb");
  if (!f || fwrite(rows, 1, size, f) != size || fclose(f)) die(path);
}

static void save_connects(const char *directory) {
  connect_row *rows = room_for(NULL, (size_t)clients_total * sizeof *rows + 1);
  for (int i = 0; i < clients_total; i++) rows[i] = clients[i].row, rows[i].state = (uint32_t)clients[i].state;
  save(directory, "connects", rows, (size_t)clients_total * sizeof *rows);
  free(rows);
}

// ---- WebSocket clients

static void begin(client *c, uint64_t at) {
  c->row.began = at;
  c->fd = dial(SOCK_NONBLOCK);
  c->state = CONNECTING;
  watch(c->fd, EPOLLIN | EPOLLOUT | EPOLLET, c - clients);
  under_way++;
}

static void end(client *c) {
  int is_early = c->state == CONNECTING || c->state == UPGRADING;
  if (is_early || !c->row.hello) failed++, under_way--;
  else if (c->state == OPEN) closed++;
  c->state = is_early ? FAILED : CLOSED;
  close(c->fd);
  drop(&c->in, c->in.size);
}

static size_t frame_of(char *to, int opcode, const char *payload, size_t size) {  // the mask is zero: nothing to do
  size_t at = 0;
  to[at++] = (char)(0x80 | opcode);
  if (size < 126) {
    to[at++] = (char)(0x80 | size);
  } else {
    to[at++] = (char)(0x80 | 126), to[at++] = (char)(size >> 8), to[at++] = (char)size;
  }
  memset(to + at, 0, 4);
  memcpy(to + at + 4, payload, size);
  return at + 4 + size;
}

static void say(client *c, int opcode, const char *payload, size_t size) {
  char frame[ACK_BYTES + 200];
  if (!put(c->fd, frame, frame_of(frame, opcode, payload, size))) end(c);
}

typedef struct { char text[ACK_BYTES + 160]; size_t size; } ack;
static const char ACK_HEAD[] = "{\"type\":\"ack\",\"message_ids\":[";

static void acknowledge(client *c, ack *a) {
  if (!a->size) return;
  memcpy(a->text + a->size, "]}", 2);
  say(c, TEXT, a->text, a->size + 2);
  a->size = 0;
}

static void note_id(client *c, ack *a, const char *payload, size_t size) {
  static const char field[] = "\"message_id\":\"";
  const char *id = memmem(payload, size, field, sizeof field - 1), *stop;
  if (!id) return;
  id += sizeof field - 1;
  stop = memchr(id, '"', (size_t)(payload + size - id));
  if (!stop) return;
  if (a->size > ACK_BYTES - 140) acknowledge(c, a);
  if (!a->size) memcpy(a->text, ACK_HEAD, a->size = sizeof ACK_HEAD - 1);
  else a->text[a->size++] = ',';
  a->size += (size_t)snprintf(a->text + a->size, 140, "\"%.*s\"", (int)(stop - id), id);
}

static void take_text(client *c, ack *a, const char *payload, size_t size, uint64_t at) {
  static const char hello[] = "{\"type\":\"hello\"", field[] = "\"content\":\"#";
  const char *number;
  if (!c->row.hello) {
    if (size < sizeof hello - 1 || memcmp(payload, hello, sizeof hello - 1)) { stray_frames++; return; }
    c->row.hello = at;
    opened++, under_way--;
    return;
  }
  number = memmem(payload, size, field, sizeof field - 1);
  if (!number) { stray_frames++; return; }
  if (deliveries_total == deliveries_room)
    deliveries = room_for(deliveries, (deliveries_room = 2 * deliveries_room + 4096) * sizeof *deliveries);
  deliveries[deliveries_total++] =
      (delivery_row){at, (uint32_t)strtoul(number + sizeof field - 1, NULL, 10), (uint32_t)(c - clients)};
  if (c - clients < members) member_deliveries++;
  if (acks) note_id(c, a, payload, size);
}

static size_t take_frames(client *c, const char *data, size_t size, uint64_t at) {  // how many bytes were used
  static ack a;
  size_t used = 0;
  while (size - used >= 2 && (c->state == OPEN || c->state == CLOSING)) {
    const unsigned char *head = (const unsigned char *)data + used;
    size_t length = head[1], skip = 2;
    if (length == 126) {
      if (size - used < 4) break;
      length = (size_t)head[2] << 8 | head[3], skip = 4;
    } else if (length > 126) {  // masked, or 64 KB and more: not from this daemon
      stray_frames++;
      end(c);
      break;
    }
    if (size - used < skip + length) break;
    const char *payload = data + used + skip;
    used += skip + length;
    int opcode = head[0] & 15;
    if (head[0] == (0x80 | TEXT)) take_text(c, &a, payload, length, at);
    else if (opcode == PING) c->row.pings++, say(c, PONG, payload, length);
    else if (opcode != CLOSE) stray_frames++;
  }
  if (c->state == OPEN) acknowledge(c, &a);
  else a.size = 0;
  return used;
}

static size_t take_answer(client *c, const char *data, size_t size, uint64_t at) {
  const char *stop = memmem(data, size, "\r\n\r\n", 4);
  if (!stop) return 0;
  if (memcmp(data, "HTTP/1.1 101", 12)) {
    if (!failed) fprintf(stderr, "drive: upgrade refused: %.*s\n", (int)(size < 400 ? size : 400), data);
    end(c);
    return size;
  }
  c->row.upgraded = at;
  c->state = OPEN;
  return (size_t)(stop + 4 - data);
}

static void take_bytes(client *c, const char *data, size_t size) {
  uint64_t at = now();
  size_t used = 0;
  if (c->in.size) append(&c->in, data, size), data = c->in.data, size = c->in.size;
  if (c->state == UPGRADING) used = take_answer(c, data, size, at);
  if (c->state == OPEN || c->state == CLOSING) used += take_frames(c, data + used, size - used, at);
  if (c->state == FAILED || c->state == CLOSED) return;
  if (c->in.size) drop(&c->in, used);
  else if (used < size) append(&c->in, data + used, size - used);
}

static void serve_client(client *c, uint32_t events) {
  if (c->state == CONNECTING && events & EPOLLOUT) {
    message *handshake = &handshakes[c - clients];
    c->state = UPGRADING;
    if (!put(c->fd, handshake->bytes, handshake->length)) { end(c); return; }
  }
  while (c->state == UPGRADING || c->state == OPEN || c->state == CLOSING) {
    ssize_t count = recv(c->fd, read_bytes, sizeof read_bytes, 0);
    if (count > 0) take_bytes(c, read_bytes, (size_t)count);
    else if (count < 0 && errno == EINTR) continue;
    else if (count < 0 && errno == EAGAIN) return;
    else end(c);
    if (count > 0 && (size_t)count < sizeof read_bytes) return;  // drained: more is a new edge
  }
}

// ---- publishers

static int publish(publisher *p, uint64_t at) {  // false when nothing is due
  if (p->request != NOBODY || next_request == requests_total || started + requests[next_request].due > at) return 0;
  message *m = &requests[next_request];
  request_rows[next_request].due = m->due ? started + m->due : at;
  request_rows[next_request].sent = at;
  p->request = (int64_t)next_request++;
  if (!put(p->fd, m->bytes, m->length)) die("send");
  return 1;
}

static void publish_due(uint64_t at) {  // in turn, for the daemon closes a connection that says nothing
  static int next;
  for (int i = 0; i < publishers_total && next_request < requests_total; i++) {
    publisher *p = &publishers[next];
    if (p->request == NOBODY && !publish(p, at)) return;
    next = (next + 1) % publishers_total;
  }
}

static size_t answer_size(const char *data, size_t size) {  // 0: not whole yet
  const char *stop = memmem(data, size, "\r\n\r\n", 4), *length;
  if (!stop) return 0;
  length = strcasestr(data, "content-length:");
  if (!length || length > stop) { fprintf(stderr, "drive: an answer without Content-Length\n"); exit(2); }
  size_t whole = (size_t)(stop + 4 - data) + strtoul(length + 15, NULL, 10);
  return size < whole ? 0 : whole;
}

static uint32_t count_of(const char *data, size_t size, const char *what) {
  uint32_t count = 0;
  size_t length = strlen(what);
  for (const char *at = data; (at = memmem(at, size - (size_t)(at - data), what, length)); at += length) count++;
  return count;
}

static void serve_publisher(publisher *p) {
  ssize_t count = recv(p->fd, read_bytes, sizeof read_bytes - 1, MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (count <= 0 || p->request == NOBODY) { fprintf(stderr, "drive: a publisher's connection ended\n"); exit(2); }
  const char *data = read_bytes;
  size_t size = (size_t)count;
  read_bytes[size] = 0;
  if (p->in.size) {
    p->in.size--;  // its final 0
    append(&p->in, read_bytes, size + 1);
    data = p->in.data, size = p->in.size - 1;
  }
  if (!answer_size(data, size)) {
    if (!p->in.size) append(&p->in, read_bytes, size + 1);
    return;
  }
  request_row *row = &request_rows[p->request];
  row->answered = now();
  row->status = (uint32_t)strtoul(data + 9, NULL, 10);
  row->accepted = count_of(data, size, "\"success\":true");
  if (row->status != 200 && row->status != 503)
    fprintf(stderr, "drive: publish: %.*s\n", (int)(size < 400 ? size : 400), data);
  drop(&p->in, p->in.size);
  answered_total++;
  p->request = NOBODY;
  publish(p, row->answered);
}

// ---- the run

static int is_ended;

static int pump(int wait_ms) {  // true when a line came on stdin
  static struct epoll_event events[EVENTS_AT_ONCE];
  int has_line = 0, count = epoll_wait(ep, events, EVENTS_AT_ONCE, wait_ms);
  for (int i = 0; i < count; i++) {
    int64_t key = (int64_t)events[i].data.u64;
    if (key == STDIN_KEY) {
      ssize_t size = read(0, read_bytes, sizeof read_bytes);
      if (size <= 0) is_ended = 1, epoll_ctl(ep, EPOLL_CTL_DEL, 0, NULL);
      has_line = 1;
    } else if (key < clients_total) {
      serve_client(&clients[key], events[i].events);
    } else {
      serve_publisher(&publishers[key - clients_total]);
    }
  }
  return has_line;
}

static void visits(uint64_t at, double per_s, uint64_t stay_ns) {
  static int oldest;
  int due = members + (int)((double)(at - started) / 1e9 * per_s);
  if (!oldest) oldest = members;
  for (; next_client < due && next_client < clients_total; next_client++) begin(&clients[next_client], at);
  for (; oldest < next_client && clients[oldest].row.began + stay_ns <= at; oldest++) {
    client *c = &clients[oldest];
    if (c->state != OPEN) continue;
    char normal[2] = {0x03, (char)0xe8};  // 1000
    say(c, CLOSE, normal, 2);
    if (c->state == OPEN) c->state = CLOSING;
  }
}

static void report(const char *what, uint64_t began, double cpu) {
  printf("%s {\"opened\":%d,\"failed\":%d,\"closed\":%d,\"stray\":%llu,\"answered\":%zu,\"deliveries\":%zu,"
         "\"began_ns\":%llu,\"ended_ns\":%llu,\"cpu_s\":%.6f}\n",
         what, opened, failed, closed, (unsigned long long)stray_frames, answered_total, deliveries_total,
         (unsigned long long)began, (unsigned long long)now(), cpu_s() - cpu);
  fflush(stdout);
}

static void connect_publishers(void) {  // not before there is something to say: the daemon would not wait for it
  for (int i = 0; i < publishers_total; i++) {
    publishers[i] = (publisher){.fd = dial(0), .request = NOBODY};
    watch(publishers[i].fd, EPOLLIN, clients_total + i);
  }
}

static void connect_members(double within_s) {
  uint64_t until = now() + (uint64_t)(within_s * 1e9);
  while (opened + failed < members && now() < until && !is_ended) {
    while (next_client < members && under_way < at_once) begin(&clients[next_client++], now());
    pump(100);
  }
}

static void publish_all(size_t wanted, double per_s, uint64_t stay_ns, double within_s) {
  uint64_t until = started + (uint64_t)(within_s * 1e9), at;
  while ((at = now()) < until && !is_ended && (answered_total < requests_total || member_deliveries < wanted)) {
    publish_due(at);
    if (per_s > 0) visits(at, per_s, stay_ns);
    int is_paced = per_s > 0 || (next_request < requests_total && requests[next_request].due);
    pump(is_paced ? 1 : 100);
  }
}

static int run(char **args) {
  const char *directory = args[0];
  size_t total, wanted = strtoul(args[5], NULL, 10);
  double per_s = atof(args[7]), within_s = atof(args[9]);
  uint64_t stay_ns = strtoul(args[8], NULL, 10) * 1000000u;
  port = atoi(args[1]), members = atoi(args[2]), at_once = atoi(args[3]), publishers_total = atoi(args[4]);
  acks = atoi(args[6]);
  handshakes = messages(directory, "handshakes", 0, &total);
  requests = messages(directory, "requests", 1, &requests_total);
  clients_total = (int)total;
  clients = calloc(total + 1, sizeof *clients);
  publishers = calloc((size_t)publishers_total + 1, sizeof *publishers);
  request_rows = calloc(requests_total + 1, sizeof *request_rows);
  if (!clients || !publishers || !request_rows) die("memory");
  struct rlimit limit = {total + 200, total + 200};
  if (setrlimit(RLIMIT_NOFILE, &limit)) getrlimit(RLIMIT_NOFILE, &limit);
  watch(0, EPOLLIN, STDIN_KEY);
  uint64_t began = now();
  double cpu = cpu_s();
  connect_members(within_s);
  save_connects(directory);
  report("connected", began, cpu);
  while (!is_ended && !pump(1000)) {}
  if (!is_ended) {
    connect_publishers();
    started = now(), cpu = cpu_s();
    publish_all(wanted, per_s, stay_ns, within_s);
    double used = cpu_s() - cpu;
    uint64_t settled = now() + 50000000u;  // what comes twice comes soon
    while (now() < settled) pump(5);
    save_connects(directory);
    save(directory, "answers", request_rows, requests_total * sizeof *request_rows);
    save(directory, "deliveries", deliveries, deliveries_total * sizeof *deliveries);
    report("done", started, cpu_s() - used);
  }
  while (!is_ended) pump(1000);
  for (int i = 0; i < clients_total; i++) {  // no TIME_WAIT: the next round needs the ports
    struct linger now_ = {1, 0};
    if (clients[i].state >= CONNECTING && clients[i].state <= CLOSING)
      setsockopt(clients[i].fd, SOL_SOCKET, SO_LINGER, &now_, sizeof now_);
  }
  return 0;
}

// ---- the least server

static _Noreturn void serve(char **args) {
  static const char body[] =
      "{\"data\":{\"success\":true,\"message\":\"#1 a notice of a hundred characters, as they are short texts for "
      "people in a back office, more or less.\",\"message_id\":\"0000000000000000000000000000000000\",\"push_time\":"
      "\"2026-01-01 00:00:00\",\"target\":\"custom\",\"message_type\":\"bench\",\"recipients_count\":\"1_users\","
      "\"status\":\"accepted\",\"duplicate\":false},\"code\":200,\"message\":\"OK\"}";
  static const char upgraded[] = "HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x4a{\"type\":\"hello\",\"data\":"
                                 "{\"user_id\":1,\"conn_id\":\"c\",\"status\":\"\"},\"code\":200}";
  char answer[1024];
  int one = 1, length = snprintf(answer, sizeof answer,
                                 "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                                 sizeof body - 1, body);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(args[0]))};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listening, (void *)&address, sizeof address) || listen(listening, 1024)) die("listen");
  watch(listening, EPOLLIN, SERVER_KEY);
  struct epoll_event events[64];
  for (;;) {
    int count = epoll_wait(ep, events, 64, -1);
    for (int i = 0; i < count; i++) {
      int fd = (int)events[i].data.u64;
      if (fd == SERVER_KEY) {
        fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
        if (fd >= 0) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), watch(fd, EPOLLIN, fd);
        continue;
      }
      ssize_t size = recv(fd, read_bytes, sizeof read_bytes - 1, 0);  // one request per read: the client waits
      if (size > 0) {
        int is_upgrade = read_bytes[0] == 'G';
        if (!put(fd, is_upgrade ? upgraded : answer, is_upgrade ? sizeof upgraded - 1 : (size_t)length)) close(fd);
      } else if (size == 0 || errno != EAGAIN) {
        close(fd);
      }
    }
  }
}

int main(int count, char **args) {
  signal(SIGPIPE, SIG_IGN);
  ep = epoll_create1(EPOLL_CLOEXEC);
  if (count == 3 && !strcmp(args[1], "serve")) serve(args + 2);
  if (count == 12 && !strcmp(args[1], "run")) return run(args + 2);
  fprintf(stderr, "drive: see bench/loadlib/drive_client.c\n");
  return 2;
}
