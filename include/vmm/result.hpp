// SPDX-License-Identifier: Apache-2.0

/// @file
/// How this library reports that a request was refused.
///
/// `Result<T>` has the member names of C++23 `std::expected<T, Error>`, which GCC 12 offers
/// only with -std=c++23 and Clang 14 not at all; moving to it later is mechanical.
///
///     vmm::Result<vmm::Vm> vm = kvm.create_vm();
///     if (!vm) {
///         std::cerr << vm.error().message() << '\n';   // what was asked, found, would work
///     }
///     vmm::Vm other = kvm.create_vm().value();          // or let it throw std::system_error
///
/// Header-only, so that the components in `vmm/memory` and `vmm/bus` need no library.

#pragma once

#include <cerrno>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <variant>

#include "vmm/assert.hpp"

namespace vmm {

/// A refusal: an errno, KVM's where KVM has one, and a sentence.
///
/// The sentence says what was asked, what was found and what would work.
class Error {
public:
    /// @param code  KVM's errno for this refusal, e.g. `std::errc::file_exists`.
    /// @param message  Lower case, no final stop, operation first.
    Error(std::errc code, std::string message)
        : code_{std::make_error_code(code)},
          message_{std::move(message)}
    {
    }

    /// The failure that the last system call left in errno; `operation` says which call.
    [[nodiscard]] static Error from_errno(const std::string& operation)
    {
        const auto code = static_cast<std::errc>(errno);
        return {code, operation + ": " + std::make_error_code(code).message()};
    }

    [[nodiscard]] const std::error_code& code() const noexcept { return code_; }
    /// The errno, e.g. EEXIST.
    [[nodiscard]] int errno_value() const noexcept { return code_.value(); }
    [[nodiscard]] const std::string& message() const noexcept { return message_; }

private:
    std::error_code code_;
    std::string message_;
};

/// What a `Result<void>` that did not fail holds: `return vmm::success;`.
struct Success {};
inline constexpr Success success{};

/// A `T`, or the reason there is none.  Never default-constructed: `return {};` could only
/// invent a value.
template <typename T>
class [[nodiscard]] Result {
    using Stored = std::conditional_t<std::is_void_v<T>, Success, T>;

public:
    using value_type = T;
    using error_type = Error;

    // NOLINTNEXTLINE(google-explicit-constructor): `return value;` must read as success.
    Result(Stored value) noexcept(std::is_nothrow_move_constructible_v<Stored>)
        : state_{std::in_place_index<0>, std::move(value)}
    {
    }
    // NOLINTNEXTLINE(google-explicit-constructor): `return error;` must read as failure.
    Result(Error error) noexcept : state_{std::in_place_index<1>, std::move(error)} {}

    [[nodiscard]] bool has_value() const noexcept { return state_.index() == 0; }
    [[nodiscard]] explicit operator bool() const noexcept { return has_value(); }

    /// @pre `has_value()`
    [[nodiscard]] Stored& operator*() & noexcept { return held(); }
    [[nodiscard]] const Stored& operator*() const& noexcept { return held(); }
    [[nodiscard]] Stored&& operator*() && noexcept { return std::move(held()); }
    [[nodiscard]] Stored* operator->() noexcept { return &held(); }
    [[nodiscard]] const Stored* operator->() const noexcept { return &held(); }

    /// @pre `!has_value()`
    [[nodiscard]] const Error& error() const noexcept
    {
        VMM_ASSERT(!has_value());
        return *std::get_if<1>(&state_);
    }

    /// The value, for callers that prefer exceptions.
    ///
    /// The only place in the public API that throws.
    /// @throws std::system_error carrying `error()`.
    Stored& value() &
    {
        throw_if_error();
        return held();
    }
    Stored&& value() &&
    {
        throw_if_error();
        return std::move(held());
    }

private:
    [[nodiscard]] Stored& held() noexcept
    {
        VMM_ASSERT(has_value());
        return *std::get_if<0>(&state_);
    }
    [[nodiscard]] const Stored& held() const noexcept
    {
        VMM_ASSERT(has_value());
        return *std::get_if<0>(&state_);
    }
    void throw_if_error() const
    {
        if (!has_value()) {
            throw std::system_error{error().code(), error().message()};
        }
    }

    std::variant<Stored, Error> state_;
};

}  // namespace vmm

// NOLINTBEGIN(bugprone-macro-parentheses): declarations and names cannot be parenthesised.
#define VMM_DETAIL_CONCAT_IMPL(a, b) a##b
#define VMM_DETAIL_CONCAT(a, b) VMM_DETAIL_CONCAT_IMPL(a, b)
#define VMM_DETAIL_TRY(result, declaration, expression)                                            \
    auto result = (expression);                                                                    \
    if (!result) {                                                                                 \
        return result.error();                                                                     \
    }                                                                                              \
    declaration = *std::move(result)

/// Declares `declaration` from the value of `expression`, or returns its error.
///
///     VMM_TRY(auto vm, kvm.create_vm());
#define VMM_TRY(declaration, expression)                                                           \
    VMM_DETAIL_TRY(VMM_DETAIL_CONCAT(vmm_try_, __LINE__), declaration, expression)

/// Returns the error of `expression`, a `Result<void>`, if it holds one.
#define VMM_TRY_VOID(expression)                                                                   \
    do {                                                                                           \
        if (auto vmm_try = (expression); !vmm_try) {                                               \
            return vmm_try.error();                                                                \
        }                                                                                          \
    } while (false)
// NOLINTEND(bugprone-macro-parentheses)
