// The C face of Gloo's process group, mirrored by binding.rs. No exception leaves it, and no callback may throw.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// Results. A message for the last three is written to `message`, cut to `message_size` and ended by 0.
enum { GRAFTWORK_OK = 0, GRAFTWORK_ABORTED = 1, GRAFTWORK_DEADLINE = 2, GRAFTWORK_FAILED = 3 };

// Where members find each other. Callbacks return 0 when they succeeded. `get` hands its value to `deliver`, once.
// `release` is called once, after the last callback.
struct graftwork_store {
  void* user;
  int (*set)(void* user, const char* key, size_t key_size, const uint8_t* value, size_t value_size);
  int (*get)(void* user, const char* key, size_t key_size, int64_t timeout_ms, void* into,
             void (*deliver)(void* into, const uint8_t* value, size_t value_size));
  int (*add)(void* user, const char* key, size_t key_size, int64_t amount, int64_t* sum);
  void (*release)(void* user);
};

// Bytes to or from a peer.
struct graftwork_move {
  int32_t peer;
  int32_t tag;
  uint8_t* bytes;
  size_t size;
};

struct graftwork_group;

// Forms a group that listens on `address`; blocks until all members are connected. Takes the store over in any case.
int graftwork_gloo_form(graftwork_store store, const char* address, int32_t rank, int32_t size, int64_t timeout_ms,
                        graftwork_group** group, char* message, size_t message_size);

// Carries all moves at once. Buffers are not touched after it returned. Sent bytes are only read.
int graftwork_gloo_exchange(graftwork_group* group, const graftwork_move* sends, size_t send_count,
                            const graftwork_move* receives, size_t receive_count, int64_t timeout_ms, char* message,
                            size_t message_size);

// Adds the buffers of all ranks, by way of a copy: `numbers` is written only when it succeeded.
int graftwork_gloo_all_reduce(graftwork_group* group, float* numbers, int64_t count, int64_t timeout_ms, char* message,
                              size_t message_size);

// Ends what waits now, and every later call, from any thread; closes all connections.
void graftwork_gloo_abort(graftwork_group* group);

// Closes and frees the group. No other call may run or follow.
void graftwork_gloo_free(graftwork_group* group);

// The path of the libtorch_cpu.so that is in use; nothing when the loader does not say.
void graftwork_gloo_library(char* path, size_t path_size);
}
