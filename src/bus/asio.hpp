// SPDX-License-Identifier: Apache-2.0

/// @file
/// Boost.Asio as GCC 12 takes it: Boost 1.74 uses std::exchange without including <utility>, and
/// <boost/asio.hpp> as a whole does not compile.  Include Asio only through this file.

#pragma once

// clang-format off: <utility> must come before Boost.
#include <utility>
// clang-format on

// GCC's thread sanitizer does not know the fences that Asio puts around its handlers, and refuses
// to compile them; the scheduler's mutex orders handlers without them.
#if defined(__SANITIZE_THREAD__)
#define BOOST_ASIO_DISABLE_FENCED_BLOCK 1
#endif

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
