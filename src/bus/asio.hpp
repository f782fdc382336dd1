// SPDX-License-Identifier: Apache-2.0

/// @file
/// Boost.Asio as GCC 12 takes it: Boost 1.74 uses std::exchange without including <utility>, and
/// <boost/asio.hpp> as a whole does not compile.  Include Asio only through this file.

#pragma once

// clang-format off: <utility> must come before Boost.
#include <utility>
// clang-format on

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
