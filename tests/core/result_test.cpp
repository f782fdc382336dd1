// SPDX-License-Identifier: Apache-2.0

#include <gtest/gtest.h>

#include "vmm/result.hpp"

namespace vmm {
namespace {

Result<int> half(int n)
{
    if (n % 2 != 0) {
        return Error{std::errc::invalid_argument, "half: the number is odd"};
    }
    return n / 2;
}

Result<int> quarter(int n)
{
    VMM_TRY(const int h, half(n));
    return half(h);
}

TEST(Result, TryReturnsTheFirstError)
{
    EXPECT_EQ(*quarter(8), 2);
    ASSERT_FALSE(quarter(6));
    EXPECT_EQ(quarter(6).error().errno_value(), EINVAL);
}

TEST(Result, ValueThrowsWhatTheErrorSays)
{
    try {
        static_cast<void>(half(1).value());
        FAIL() << "nothing was thrown";
    } catch (const std::system_error& error) {
        EXPECT_EQ(error.code(), std::errc::invalid_argument);
        EXPECT_NE(std::string{error.what()}.find("the number is odd"), std::string::npos);
    }
}

}  // namespace
}  // namespace vmm
