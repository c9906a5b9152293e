// Gloo's process group, out of libtorch's own library, behind the C face of shim.h.
//
// Waits can be ended from another thread: receives and sends by their own abort, the native all-reduce by an error on
// the connections under it. It runs on a copy that it owns, so a caller need not wait for Gloo to let go.

#include "shim.h"

#define USE_C10D_GLOO 1
#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <dlfcn.h>

#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using Work = c10::intrusive_ptr<c10d::Work>;

// The callers' table of keys as libtorch's store. Values that were waited for are kept, since Gloo gets them next.
class CallbackStore : public c10d::Store {
 public:
  CallbackStore(graftwork_store callbacks, milliseconds timeout) : c10d::Store(timeout), callbacks_(callbacks) {}
  CallbackStore(const CallbackStore&) = delete;
  ~CallbackStore() override { callbacks_.release(callbacks_.user); }

  c10::intrusive_ptr<c10d::Store> clone() override { throw std::runtime_error("this store is not cloned"); }

  void set(const std::string& key, const std::vector<uint8_t>& value) override {
    require(callbacks_.set(callbacks_.user, key.data(), key.size(), value.data(), value.size()) == 0, "set", key);
  }

  std::vector<uint8_t> get(const std::string& key) override { return fetch(key, timeout_); }

  int64_t add(const std::string& key, int64_t amount) override {
    int64_t sum = 0;
    require(callbacks_.add(callbacks_.user, key.data(), key.size(), amount, &sum) == 0, "add", key);
    return sum;
  }

  bool check(const std::vector<std::string>& keys) override {
    try {
      wait(keys, milliseconds(0));
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }

  void wait(const std::vector<std::string>& keys) override { wait(keys, timeout_); }

  void wait(const std::vector<std::string>& keys, const milliseconds& timeout) override {
    for (const auto& key : keys) fetch(key, timeout);
  }

  bool deleteKey(const std::string&) override { return false; }
  int64_t getNumKeys() override { return 0; }

 private:
  static void require(bool done, const char* what, const std::string& key) {
    if (!done) throw std::runtime_error(std::string("the rendezvous failed to ") + what + " " + key);
  }

  static void deliver(void* into, const uint8_t* value, size_t size) {
    static_cast<std::vector<uint8_t>*>(into)->assign(value, value + size);
  }

  std::vector<uint8_t> fetch(const std::string& key, milliseconds timeout) {
    auto known = known_.find(key);
    if (known == known_.end()) {
      std::vector<uint8_t> value;
      int result =
          callbacks_.get(callbacks_.user, key.data(), key.size(), timeout.count(), &value, &CallbackStore::deliver);
      require(result == 0, "get", key);
      known = known_.emplace(key, std::move(value)).first;
    }
    return known->second;
  }

  graftwork_store callbacks_;
  std::map<std::string, std::vector<uint8_t>> known_;
};

// The process group, with the one thing that its own face lacks.
class Gloo : public c10d::ProcessGroupGloo {
 public:
  using c10d::ProcessGroupGloo::ProcessGroupGloo;
  void close() {
    for (auto& context : contexts_) context->closeConnections();
  }
  // Closes connections with an error for all that waits on them; closing alone leaves this side's waits alone.
  void interrupt() {
    for (auto& context : contexts_) {
      for (int peer = 0; peer < getSize(); ++peer) {
        if (peer == getRank()) continue;
        // The whole object, wherever its base lies in it.
        void* pair = dynamic_cast<void*>(context->getPair(peer).get());
        if (pair == nullptr) continue;
        static_cast<gloo::transport::tcp::Pair*>(pair)->signalExceptionExternal("the group was aborted");
      }
    }
  }
};

// Held while an operation is started, never while it is waited for. libtorch's flight recorder enters every group into
// a map that it does not guard, so that two groups of one process could corrupt it.
std::mutex starting;

// What one all-reduce ends with, whoever is still there to look.
struct Ending {
  std::mutex mutex;
  std::condition_variable changed;
  bool finished = false;
  bool aborted = false;
};

int fail(int result, const char* text, char* message, size_t size) {
  if (size > 0) std::snprintf(message, size, "%s", text);
  return result;
}

}  // namespace

struct graftwork_group {
  c10::intrusive_ptr<Gloo> gloo;
  std::mutex mutex;
  // Under the mutex: what the current call waits for.
  bool aborted = false;
  std::vector<Work> waiting;
  std::shared_ptr<Ending> ending;
  // Whether an all-reduce may still run inside Gloo.
  bool abandoned = false;

  bool is_aborted() {
    std::lock_guard<std::mutex> lock(mutex);
    return aborted;
  }

  // The works hold the caller's memory; when they are gone, Gloo has let go of it.
  void forget() {
    std::vector<Work> works;
    {
      std::lock_guard<std::mutex> lock(mutex);
      works.swap(waiting);
      ending.reset();
    }
  }

  int classify(const std::exception& error, Clock::time_point until, char* message, size_t size) {
    if (is_aborted()) return GRAFTWORK_ABORTED;
    if (Clock::now() >= until || std::strstr(error.what(), "imed out") != nullptr) return GRAFTWORK_DEADLINE;
    return fail(GRAFTWORK_FAILED, error.what(), message, size);
  }
};

namespace {

// A wait of 0 ms would mean Gloo's default.
milliseconds left(Clock::time_point until) {
  auto rest = std::chrono::duration_cast<milliseconds>(until - Clock::now());
  return std::max(rest, milliseconds(1));
}

at::Tensor tensor_of(const graftwork_move& move) {
  return at::from_blob(move.bytes, {static_cast<int64_t>(move.size)}, at::TensorOptions().dtype(at::kByte));
}

// Starts a move and registers it for an abort, or says that there was one.
bool start(graftwork_group* group, const graftwork_move& move, bool sends, std::vector<Work>& works) {
  std::vector<at::Tensor> tensors{tensor_of(move)};
  Work work;
  {
    std::lock_guard<std::mutex> lock(starting);
    work = sends ? group->gloo->send(tensors, move.peer, move.tag) : group->gloo->recv(tensors, move.peer, move.tag);
  }
  works.push_back(work);
  std::lock_guard<std::mutex> lock(group->mutex);
  group->waiting.push_back(std::move(work));
  return !group->aborted;
}

int exchange(graftwork_group* group, const graftwork_move* sends, size_t send_count, const graftwork_move* receives,
             size_t receive_count, Clock::time_point until) {
  std::vector<Work> works;
  for (size_t i = 0; i < receive_count; ++i)
    if (!start(group, receives[i], false, works)) return GRAFTWORK_ABORTED;
  for (size_t i = 0; i < send_count; ++i)
    if (!start(group, sends[i], true, works)) return GRAFTWORK_ABORTED;
  for (auto& work : works)
    if (!work->wait(left(until)) || group->is_aborted()) return GRAFTWORK_ABORTED;
  return GRAFTWORK_OK;
}

int all_reduce(graftwork_group* group, float* numbers, int64_t count, Clock::time_point until) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  at::Tensor copy = at::empty({count}, at::TensorOptions().dtype(at::kFloat));
  std::memcpy(copy.data_ptr<float>(), numbers, bytes);
  std::vector<at::Tensor> tensors{copy};
  c10d::AllreduceOptions options;
  options.timeout = left(until);
  // Whatever Gloo waits for without being told how long: it would take the deadline of forming.
  group->gloo->setTimeout(options.timeout);
  auto ending = std::make_shared<Ending>();
  {
    std::lock_guard<std::mutex> lock(group->mutex);
    if (group->aborted) return GRAFTWORK_ABORTED;
    group->ending = ending;
  }
  Work work;
  {
    std::lock_guard<std::mutex> lock(starting);
    work = group->gloo->allreduce(tensors, options);
  }
  work->getFuture()->addCallback([ending](c10::ivalue::Future&) {
    std::lock_guard<std::mutex> lock(ending->mutex);
    ending->finished = true;
    ending->changed.notify_all();
  });
  {
    std::unique_lock<std::mutex> lock(ending->mutex);
    // Gloo's own deadline comes first, with its own words; this one is for the case that it does not come.
    ending->changed.wait_until(lock, until + milliseconds(200), [&] { return ending->finished || ending->aborted; });
    if (!ending->finished) {
      group->abandoned = true;
      return ending->aborted ? GRAFTWORK_ABORTED : GRAFTWORK_DEADLINE;
    }
  }
  // The callback runs a moment before the work itself counts as completed.
  work->wait();
  std::memcpy(numbers, copy.data_ptr<float>(), bytes);
  return GRAFTWORK_OK;
}

// Runs a call with its deadline; every exception becomes a result.
template <typename Call>
int guarded(graftwork_group* group, int64_t timeout_ms, char* message, size_t size, Call call) {
  const auto until = Clock::now() + milliseconds(timeout_ms);
  int result = GRAFTWORK_FAILED;
  try {
    try {
      result = call(until);
    } catch (const std::exception& error) {
      result = group->classify(error, until, message, size);
    }
    group->forget();
  } catch (...) {
    return fail(GRAFTWORK_FAILED, "an exception of unknown type", message, size);
  }
  return result;
}

}  // namespace

extern "C" {

int graftwork_gloo_form(graftwork_store callbacks, const char* address, int32_t rank, int32_t size, int64_t timeout_ms,
                        graftwork_group** group, char* message, size_t message_size) {
  c10::intrusive_ptr<c10d::Store> store;
  try {
    const milliseconds timeout(timeout_ms);
    store = c10::make_intrusive<CallbackStore>(callbacks, timeout);
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    options->threads = 1;
    auto formed = std::make_unique<graftwork_group>();
    formed->gloo = c10::make_intrusive<Gloo>(store, rank, size, options);
    *group = formed.release();
    return GRAFTWORK_OK;
  } catch (const std::exception& error) {
    bool late = std::strstr(error.what(), "imed out") != nullptr;
    return fail(late ? GRAFTWORK_DEADLINE : GRAFTWORK_FAILED, error.what(), message, message_size);
  } catch (...) {
    return fail(GRAFTWORK_FAILED, "an exception of unknown type", message, message_size);
  }
}

int graftwork_gloo_exchange(graftwork_group* group, const graftwork_move* sends, size_t send_count,
                            const graftwork_move* receives, size_t receive_count, int64_t timeout_ms, char* message,
                            size_t message_size) {
  return guarded(group, timeout_ms, message, message_size, [=](Clock::time_point until) {
    return exchange(group, sends, send_count, receives, receive_count, until);
  });
}

int graftwork_gloo_all_reduce(graftwork_group* group, float* numbers, int64_t count, int64_t timeout_ms, char* message,
                              size_t message_size) {
  return guarded(group, timeout_ms, message, message_size,
                 [=](Clock::time_point until) { return all_reduce(group, numbers, count, until); });
}

void graftwork_gloo_abort(graftwork_group* group) {
  try {
    std::shared_ptr<Ending> ending;
    {
      std::lock_guard<std::mutex> lock(group->mutex);
      group->aborted = true;
      for (auto& work : group->waiting) work->abort();
      ending = group->ending;
    }
    group->gloo->interrupt();
    if (ending) {
      std::lock_guard<std::mutex> lock(ending->mutex);
      ending->aborted = true;
      ending->changed.notify_all();
    }
  } catch (...) {
    // The flag is set; what still waits ends at its deadline.
  }
}

void graftwork_gloo_free(graftwork_group* group) {
  try {
    group->abandoned ? group->gloo->interrupt() : group->gloo->close();
    if (group->abandoned) {
      // Gloo's thread takes a moment to notice; nobody should wait for that.
      std::thread([group] { delete group; }).detach();
      return;
    }
    delete group;
  } catch (...) {
  }
}

void graftwork_gloo_library(char* path, size_t path_size) {
  Dl_info info;
  auto known = reinterpret_cast<void*>(&c10d::getDefaultGlooLazyInit);
  if (path_size > 0) path[0] = 0;
  if (dladdr(known, &info) != 0 && info.dli_fname != nullptr) fail(0, info.dli_fname, path, path_size);
}
}
