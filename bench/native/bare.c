/* The least an HTTP server can do: how fast publishers and connects are by themselves. Every POST gets the answer to a
 * notice that was accepted, every GET a 101 and a hello, whatever they say. One request per read: the clients wait.
 *
 *     bare PORT
 */
#include "common.h"

static char buffer[BUFFER_BYTES];
static char answer[1024];
static size_t answer_bytes;

static const char upgraded[] = "HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x4a{\"type\":\"hello\",\"data\":"
                               "{\"user_id\":1,\"conn_id\":\"c\",\"status\":\"\"},\"code\":200}";

static void prepare_answer(void) {
  static const char body[] =
      "{\"data\":{\"success\":true,\"message\":\"#1 a notice of a hundred characters, as they are short texts for "
      "people in a back office, more or less.\",\"message_id\":\"0000000000000000000000000000000000\",\"push_time\":"
      "\"2026-01-01 00:00:00\",\"target\":\"custom\",\"message_type\":\"bench\",\"recipients_count\":\"1_users\","
      "\"status\":\"accepted\",\"duplicate\":false},\"code\":200,\"message\":\"OK\"}";
  answer_bytes = (size_t)snprintf(answer, sizeof answer,
                                  "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                                  sizeof body - 1, body);
}

static void accept_one(int listener) {
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) return;
  no_delay(fd);
  watch(fd, fd, EPOLLIN, EPOLL_CTL_ADD);
}

static void readable(int fd) {
  ssize_t size = recv(fd, buffer, sizeof buffer, 0);
  if (size < 0 && errno == EAGAIN) return;
  int is_upgrade = size > 0 && buffer[0] == 'G';
  size_t wanted = is_upgrade ? sizeof upgraded - 1 : answer_bytes;
  if (size <= 0 || send(fd, is_upgrade ? upgraded : answer, wanted, MSG_NOSIGNAL) != (ssize_t)wanted) close(fd);
}

int main(int count, char **args) {
  struct epoll_event events[EVENTS];
  if (count != 2) return 2;
  prepare_answer();
  poller = epoll_create1(EPOLL_CLOEXEC);
  int listener = listen_at(atoi(args[1]));
  watch(listener, listener, EPOLLIN, EPOLL_CTL_ADD);
  for (;;) {
    int ready = epoll_wait(poller, events, EVENTS, -1);
    for (int i = 0; i < ready; i++) {
      int fd = (int)events[i].data.u64;
      if (fd == listener) accept_one(fd);
      else readable(fd);
    }
  }
}
