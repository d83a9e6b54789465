// From the structs of arguments.h to PyTorch's dispatcher: schemas as text, and functions of one struct as kernels.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cctype>
#include <stdexcept>
#include <string>
#include <utility>

#include "arguments.h"

namespace fusedlstm {

inline const char* type_name(const Tensor&) {
  return "Tensor";
}
inline const char* type_name(const OptionalTensor&) {
  return "Tensor?";
}
inline const char* type_name(const Tensors&) {
  return "Tensor[]";
}
inline const char* type_name(const OwnedTensors&) {
  return "Tensor[]";
}
inline const char* type_name(const OptionalTensors&) {
  return "Tensor?[]";
}
inline const char* type_name(const std::vector<bool>&) {
  return "bool[]";
}
inline const char* type_name(bool) {
  return "bool";
}
inline const char* type_name(double) {
  return "float";
}
inline const char* type_name(int64_t) {
  return "int";
}

// "(Tensor input, ...)": the members of a struct as a schema lists them.
template <class Struct>
std::string listed() {
  std::string text;
  Struct{}.visit([&](const char* name, const auto& member) {
    text.append(text.empty() ? "(" : ", ").append(type_name(member)).append(" ").append(name);
  });
  return text + ")";
}

// An error's text without what STD_TORCH_CHECK begins it with, "function, file:line, ": users are told what was
// expected and what was got, and have no use for the place in these files.
inline std::string without_place(const std::string& text) {
  const size_t file = text.find(", "), end = file == text.npos ? file : text.find(", ", file + 2);
  if (end == text.npos) return text;
  const size_t line = text.rfind(':', end) + 1;  // 0 for none
  const auto is_digit = [](unsigned char c) { return std::isdigit(c) != 0; };
  const bool is_place = line > file && std::all_of(text.begin() + line, text.begin() + end, is_digit);
  return is_place ? text.substr(end + 2) : text;
}

// An argument out of PyTorch's stack.
template <class Member>
void take(StableIValue value, Member& member) {
  member = torch::stable::detail::to<Member>(value);
}
inline void take(StableIValue value, OwnedTensors& member) {
  const auto handles = torch::stable::detail::to<std::vector<AtenTensorHandle>>(value);
  member.reserve(handles.size());
  for (const AtenTensorHandle handle : handles) member.emplace_back(handle);
}

// A kernel for StableLibrary::impl: takes the members of Arguments from the stack, and leaves those of Results there.
template <class Results, class Arguments, Results (*kFunction)(Arguments&)>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  namespace stable = torch::stable::detail;
  Arguments arguments;
  const StableIValue* next = stack;
  arguments.visit([&](const char*, auto& member) { take(*next++, member); });
  try {
    Results results = kFunction(arguments);
    results.visit([&](const char*, auto& member) { *stack++ = stable::from(member); });
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(without_place(error.what()));
  }
}

}  // namespace fusedlstm
