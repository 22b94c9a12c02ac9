/* The least that a fan-out can be: called by bench/fanout.py on the descriptors of the hub's own connections. */
#include <stddef.h>
#include <sys/socket.h>

/* How many of the sockets took all of the frame. */
size_t send_loop(const int *fds, size_t count, const char *frame, size_t size) {
  size_t whole = 0;
  for (size_t i = 0; i < count; i++) whole += send(fds[i], frame, size, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size;
  return whole;
}
