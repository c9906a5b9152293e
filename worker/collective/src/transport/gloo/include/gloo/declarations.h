// Declarations of the parts of Gloo that the headers of libtorch 2.11 name. libtorch ships its process group's header
// and Gloo's compiled code, but not Gloo's own headers. Classes are only held by pointer; every function declared here
// is exported by libtorch_cpu.so. Nothing may be constructed through these declarations, since layouts are unknown.
#pragma once

#include <chrono>
#include <exception>
#include <memory>
#include <string>
#include <vector>

namespace gloo {

namespace transport {
class Device;
class Pair {
 public:
  virtual ~Pair();
};
namespace tcp {
// Derives from transport::Pair.
class Pair {
 public:
  std::exception_ptr signalExceptionExternal(const std::string& message);
};
}  // namespace tcp
class UnboundBuffer {
 public:
  virtual ~UnboundBuffer();
};
}  // namespace transport

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
  void closeConnections();
  std::unique_ptr<transport::Pair>& getPair(int rank);
};

namespace rendezvous {
class Store {
 public:
  virtual ~Store();
  virtual void set(const std::string& key, const std::vector<char>& value) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout);
};
}  // namespace rendezvous

}  // namespace gloo
