/* The driving client: WebSocket clients, publishers over HTTP, and a log of all that happened to them, in one thread.
 * It judges nothing: what came when goes into binary files, and bench/loadlib/drive_log.py says whether it is right.
 *
 *     drive DIRECTORY PORT MEMBERS AT_ONCE PUBLISHERS DELIVERIES ACKS VISITS_PER_S STAY_MS WITHIN_S
 *
 * DIRECTORY/handshakes: MEMBERS upgrade requests, then those of visitors, each behind its length (u32).
 * DIRECTORY/requests: due (u64, ns after the start; 0 = as soon as possible), length (u32), a whole HTTP request.
 * Little-endian, like the files it writes: see the structs below that end in _row.
 *
 * It connects MEMBERS, AT_ONCE at a time, says "connected"; at a line on stdin sends the requests and lets visitors
 * come and go; when every request is answered and DELIVERIES notices have reached members, or after WITHIN_S, says
 * "done"; holds the connections until stdin ends. A notice's content begins with # and its number. It came when the last
 * of its bytes reached this machine's kernel (SO_TIMESTAMPNS): this client may be busy with 10,000 others then.
 */
#include "common.h"

enum { ACK_BYTES = 3500, NOBODY = -1, STDIN_KEY = -1 };
enum { NEW, CONNECTING, UPGRADING, OPEN, CLOSING, CLOSED, FAILED };

typedef struct { uint64_t began, upgraded, hello; uint32_t state, pings; } connect_row;  /* ns, CLOCK_MONOTONIC */
typedef struct { uint64_t due, sent, answered; uint32_t status, accepted; } request_row; /* accepted: notices */
typedef struct { uint64_t at; uint32_t number, client; } delivery_row;

typedef struct { int fd, state; tail_t tail; connect_row row; } client;
typedef struct { int fd; int64_t request; tail_t tail; } publisher;
typedef struct { const char *bytes; uint32_t length; uint64_t due; } message;

static int port, acks, at_once, members, clients_total, publishers_total;
static client *clients;
static publisher *publishers;
static message *handshakes, *requests;
static size_t requests_total, next_request, answered_total;
static request_row *request_rows;
static delivery_row *deliveries;
static size_t deliveries_total, deliveries_room, member_deliveries;
static int opened, failed, closed, under_way, next_client;
static uint64_t started, stray_frames, clock_offset; /* of CLOCK_REALTIME to CLOCK_MONOTONIC */
static char buffer[BUFFER_BYTES + 1]; /* its last byte is for a zero */

/* A socket that cannot take a whole request at once is beyond what this client is for. */
static int put(int fd, const char *bytes, size_t count) {
  return send(fd, bytes, count, MSG_NOSIGNAL) == (ssize_t)count;
}

/* ---- files */

static const char *path_of(const char *directory, const char *name) {
  static char path[4096];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  return path;
}

static message *messages(const char *directory, const char *name, int has_due, size_t *total) {
  size_t size, at = 0, room = 0;
  char *data = content_of(path_of(directory, name), &size);
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
  FILE *f = fopen(path_of(directory, name), "wb");
  if (!f || fwrite(rows, 1, size, f) != size || fclose(f)) die(name);
}

static void save_connects(const char *directory) {
  connect_row *rows = room_for(NULL, (size_t)clients_total * sizeof *rows + 1);
  for (int i = 0; i < clients_total; i++) rows[i] = clients[i].row, rows[i].state = (uint32_t)clients[i].state;
  save(directory, "connects", rows, (size_t)clients_total * sizeof *rows);
  free(rows);
}

/* ---- WebSocket clients */

static void begin(client *c, uint64_t at) {
  c->row.began = at;
  c->fd = dial(port, SOCK_NONBLOCK);
  c->state = CONNECTING;
  int one = 1;
  if (setsockopt(c->fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one)) die("SO_TIMESTAMPNS");
  watch(c->fd, c - clients, EPOLLIN | EPOLLOUT | EPOLLET, EPOLL_CTL_ADD);
  under_way++;
}

static void end(client *c) {
  int is_early = c->state == CONNECTING || c->state == UPGRADING;
  if (is_early || !c->row.hello) failed++, under_way--;
  else if (c->state == OPEN) closed++;
  c->state = is_early ? FAILED : CLOSED;
  close(c->fd);
  free(c->tail.bytes);
  c->tail = (tail_t){0};
}

static void say(client *c, int opcode, const char *payload, size_t size) {
  char frame[ACK_BYTES + 200];
  if (!put(c->fd, frame, make_frame(frame, opcode, payload, size, 1))) end(c);
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

static int is_open(const client *c) { return c->state == OPEN || c->state == CLOSING; }

static void take_frame(client *c, ack *a, const frame_t *frame, uint64_t at) {
  const char *payload = (char *)frame->payload;
  if (frame->is_masked) stray_frames++, end(c);
  else if (frame->first == (0x80 | TEXT)) take_text(c, a, payload, frame->size, at);
  else if (frame->opcode == PING) c->row.pings++, say(c, PONG, payload, frame->size);
  else if (frame->opcode != CLOSE) stray_frames++;
}

static size_t take_frames(client *c, char *bytes, size_t size, uint64_t at) { /* how many bytes were used */
  static ack a;
  size_t used = 0;
  for (frame_t frame; is_open(c) && parse_frame(bytes + used, size - used, &frame); used += frame.length)
    take_frame(c, &a, &frame, at);
  if (c->state == OPEN) acknowledge(c, &a);
  else a.size = 0;
  return used;
}

static size_t take_answer(client *c, const char *bytes, size_t size, uint64_t at) {
  const char *stop = memmem(bytes, size, "\r\n\r\n", 4);
  if (!stop) return 0;
  if (!begins(bytes, size, "HTTP/1.1 101")) {
    if (!failed) fprintf(stderr, "drive: upgrade refused: %.*s\n", (int)(size < 400 ? size : 400), bytes);
    end(c);
    return size;
  }
  c->row.upgraded = at;
  c->state = OPEN;
  return (size_t)(stop + 4 - bytes);
}

static void take_bytes(client *c, size_t size, uint64_t at) {
  size_t used = 0;
  if (c->state == UPGRADING) used = take_answer(c, buffer, size, at);
  if (is_open(c)) used += take_frames(c, buffer + used, size - used, at);
  if (c->state == UPGRADING || is_open(c)) keep_tail(&c->tail, buffer + used, size - used);
}

/* `arrived`: when the kernel got the last of the bytes. */
static ssize_t receive(int fd, char *bytes, size_t room, uint64_t *arrived) {
  char control[CMSG_SPACE(sizeof(struct timespec))];
  struct iovec piece = {bytes, room};
  struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  ssize_t count = recvmsg(fd, &message, 0);
  *arrived = now_ns();
  for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); count > 0 && c; c = CMSG_NXTHDR(&message, c)) {
    struct timespec at;
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_TIMESTAMPNS) continue;
    memcpy(&at, CMSG_DATA(c), sizeof at);
    *arrived = (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec - clock_offset;
  }
  return count;
}

static void serve_client(client *c, uint32_t events) {
  if (c->state == CONNECTING && events & EPOLLOUT) {
    message *handshake = &handshakes[c - clients];
    c->state = UPGRADING;
    if (!put(c->fd, handshake->bytes, handshake->length)) { end(c); return; }
  }
  while (c->state == UPGRADING || is_open(c)) {
    size_t had = c->tail.size, room = BUFFER_BYTES - had;
    uint64_t arrived;
    ssize_t count = receive(c->fd, buffer + had, room, &arrived);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) { end(c); return; }
    take_tail(&c->tail, buffer);
    take_bytes(c, had + (size_t)count, arrived);
    if ((size_t)count < room) return; /* drained: more is a new edge */
  }
}

/* ---- publishers */

static int publish(publisher *p, uint64_t at) { /* false when nothing is due */
  if (p->request != NOBODY || next_request == requests_total || started + requests[next_request].due > at) return 0;
  message *m = &requests[next_request];
  request_rows[next_request].due = m->due ? started + m->due : at;
  request_rows[next_request].sent = at;
  p->request = (int64_t)next_request++;
  if (!put(p->fd, m->bytes, m->length)) die("send");
  return 1;
}

static void publish_due(uint64_t at) { /* in turn, for the daemon closes a connection that says nothing */
  static int next;
  for (int i = 0; i < publishers_total && next_request < requests_total; i++) {
    publisher *p = &publishers[next];
    if (p->request == NOBODY && !publish(p, at)) return;
    next = (next + 1) % publishers_total;
  }
}

static uint32_t count_of(const char *data, size_t size, const char *what) {
  uint32_t count = 0;
  size_t length = strlen(what);
  for (const char *at = data; (at = memmem(at, size - (size_t)(at - data), what, length)); at += length) count++;
  return count;
}

static void serve_publisher(publisher *p) {
  size_t had = p->tail.size;
  ssize_t count = recv(p->fd, buffer + had, BUFFER_BYTES - had, MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (count <= 0 || p->request == NOBODY) { fprintf(stderr, "drive: a publisher's connection ended\n"); exit(2); }
  take_tail(&p->tail, buffer);
  size_t size = had + (size_t)count;
  if (!answer_size(buffer, size)) {
    keep_tail(&p->tail, buffer, size);
    return;
  }
  buffer[size] = 0;
  request_row *row = &request_rows[p->request];
  row->answered = now_ns();
  row->status = (uint32_t)strtoul(buffer + 9, NULL, 10);
  row->accepted = count_of(buffer, size, "\"success\":true");
  if (row->status != 200 && row->status != 503)
    fprintf(stderr, "drive: publish: %.*s\n", (int)(size < 400 ? size : 400), buffer);
  answered_total++;
  p->request = NOBODY;
  publish(p, row->answered);
}

/* ---- the run */

static int is_ended;

static int pump(int wait_ms) { /* true when a line came on stdin */
  static struct epoll_event events[EVENTS];
  int has_line = 0, count = epoll_wait(poller, events, EVENTS, wait_ms);
  for (int i = 0; i < count; i++) {
    int64_t key = (int64_t)events[i].data.u64;
    if (key == STDIN_KEY) {
      ssize_t size = read(0, buffer, BUFFER_BYTES);
      if (size <= 0) is_ended = 1, watch(0, STDIN_KEY, 0, EPOLL_CTL_DEL);
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
    char normal[2] = {0x03, (char)0xe8}; /* 1000 */
    say(c, CLOSE, normal, 2);
    if (c->state == OPEN) c->state = CLOSING;
  }
}

static void report(const char *what, uint64_t began, uint64_t used_ns) {
  printf("%s {\"opened\":%d,\"failed\":%d,\"closed\":%d,\"stray\":%llu,\"answered\":%zu,\"deliveries\":%zu,"
         "\"began_ns\":%llu,\"ended_ns\":%llu,\"cpu_s\":%.6f}\n",
         what, opened, failed, closed, (unsigned long long)stray_frames, answered_total, deliveries_total,
         (unsigned long long)began, (unsigned long long)now_ns(), (double)used_ns / 1e9);
  fflush(stdout);
}

static void connect_publishers(void) { /* not before there is something to say: the daemon would not wait for it */
  for (int i = 0; i < publishers_total; i++) {
    publishers[i] = (publisher){.fd = dial(port, 0), .request = NOBODY};
    watch(publishers[i].fd, clients_total + i, EPOLLIN, EPOLL_CTL_ADD);
  }
}

static void connect_members(double within_s) {
  uint64_t until = now_ns() + (uint64_t)(within_s * 1e9);
  while (opened + failed < members && now_ns() < until && !is_ended) {
    while (next_client < members && under_way < at_once) begin(&clients[next_client++], now_ns());
    pump(100);
  }
}

static void publish_all(size_t wanted, double per_s, uint64_t stay_ns, double within_s) {
  uint64_t until = started + (uint64_t)(within_s * 1e9), at;
  while ((at = now_ns()) < until && !is_ended && (answered_total < requests_total || member_deliveries < wanted)) {
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
  allow_descriptors((unsigned)total + 200);
  watch(0, STDIN_KEY, EPOLLIN, EPOLL_CTL_ADD);
  uint64_t began = now_ns(), cpu = cpu_ns();
  connect_members(within_s);
  save_connects(directory);
  report("connected", began, cpu_ns() - cpu);
  while (!is_ended && !pump(1000)) {}
  if (!is_ended) {
    connect_publishers();
    started = now_ns(), cpu = cpu_ns();
    publish_all(wanted, per_s, stay_ns, within_s);
    uint64_t used = cpu_ns() - cpu;
    uint64_t settled = now_ns() + 50000000u; /* what comes twice comes soon */
    while (now_ns() < settled) pump(5);
    save_connects(directory);
    save(directory, "answers", request_rows, requests_total * sizeof *request_rows);
    save(directory, "deliveries", deliveries, deliveries_total * sizeof *deliveries);
    report("done", started, used);
  }
  while (!is_ended) pump(1000);
  for (int i = 0; i < clients_total; i++)
    if (clients[i].state >= CONNECTING && clients[i].state <= CLOSING) end_at_once(clients[i].fd);
  return 0;
}

int main(int count, char **args) {
  struct timespec real;
  clock_gettime(CLOCK_REALTIME, &real);
  clock_offset = (uint64_t)real.tv_sec * 1000000000u + (uint64_t)real.tv_nsec - now_ns();
  signal(SIGPIPE, SIG_IGN);
  poller = epoll_create1(EPOLL_CLOEXEC);
  if (count == 11 && poller >= 0) return run(args + 1);
  fprintf(stderr, "drive: see the head of bench/native/drive.c\n");
  return 2;
}
