// SPDX-License-Identifier: Apache-2.0

/// @file
/// Cases in which the engine once differed from the host CPU, as the oracle printed them.

#include <memory>
#include <stdexcept>

#include <gtest/gtest.h>

#include "oracle/case_text.hpp"
#include "oracle/judge.hpp"
#include "oracle/oracle.hpp"

namespace vmm::oracle {
namespace {

class OracleRegression : public testing::Test {
protected:
    void SetUp() override
    {
        try {
            oracle = std::make_unique<Oracle>(1, std::vector{x86::soft::TranslationMode::Off,
                                                             x86::soft::TranslationMode::Stress});
        } catch (const std::exception& error) {
            GTEST_SKIP() << "this host cannot judge: " << error.what();
        }
    }

    void expect_agreement(const std::string& text)
    {
        Case each;
        Arena image{};
        from_text(text, each, image);
        EXPECT_EQ(oracle->try_case(each, image), "") << text;
    }

    std::unique_ptr<Oracle> oracle;
};

#define SKIP_ON_AMD()                                                                              \
    if (is_amd()) {                                                                                \
        GTEST_SKIP() << "AMD's CPUs do it otherwise, the engine does as Intel's";                  \
    }

TEST_F(OracleRegression, UndefinedInstructionsAreFetchedWhole)
{
    expect_agreement("code=660f3a at=0x1ffb");
    expect_agreement("code=c4e3 bits=32 at=0x1ffb");
    expect_agreement("code=c4c17ca2 at=0x1ffc");
    expect_agreement("code=c5f122a9 bits=32 at=0x1ff9");
    expect_agreement("code=0f3d at=0x1ffe");
    expect_agreement("code=f0669a at=0x1ffa");
    expect_agreement("code=c4e179a6bb bits=32 at=0x1ff8");
    expect_agreement("code=8f bits=32 at=0x1ffe");
    expect_agreement("code=f20f78 bits=32 at=0x1ffb");
    expect_agreement("code=65f3420f0fa6 at=0x1ff6");
}

TEST_F(OracleRegression, TooLongComesBeforeUndefinedAndAfterFetching)
{
    expect_agreement("code=3e3e3e3e3e3e3e3e3e3e66400f38d3");
    expect_agreement("code=3e3e3e3e3e3e3e3e3e660f84 at=0x1ff2");
}

TEST_F(OracleRegression, ThreeDNowEndsWithItsOpcode)
{
    SKIP_ON_AMD();
    expect_agreement("code=660f0f65 bits=32 at=0x1ffc");
    expect_agreement("code=3e3e3e3e3e3e3e3e3e3ef20f0f46 bits=32");
    expect_agreement("code=3e3e3e3e3e3e3e3e3e3ef20f78 bits=32");
}

TEST_F(OracleRegression, UndefinedVexIsAsLongAsWithoutAPrefix)
{
    expect_agreement("code=66c441ff8f at=0x1ff9");
    expect_agreement("code=66c4e17c85 at=0x1ff8");
    expect_agreement("code=66c4e19284 bits=32 at=0x1ff8");
}

TEST_F(OracleRegression, SelectorsArePoppedByTwoBytes)
{
    SKIP_ON_AMD();
    expect_agreement("code=cb bits=32 rsp=0x20003ffa patch:0x20003ffa=000100302300");
}

/// The element across the page's end is read before the destination is looked at.
TEST_F(OracleRegression, RepeatedMovesFaultAsSingleOnes)
{
    expect_agreement("code=f3a5 rcx=0x4 rsi=0x20003fff");
    expect_agreement("code=f3a5 rcx=0xf8 rsi=0x20001fd6 rdi=0x7fffffffffff");
}

TEST_F(OracleRegression, LarGivesTheLimitToo)
{
    expect_agreement("code=4d0f02ed r13=0x2b");
}

TEST_F(OracleRegression, ArplWritesOnlyWhatChanges)
{
    expect_agreement("code=63a8 bits=32");
    expect_agreement("code=2e63154024002090 bits=32");
}

TEST_F(OracleRegression, VexBitsThatMeanNothingIn32BitCode)
{
    expect_agreement("code=c4c3f922e642 bits=32 sequence=1 "
                     "ymm0=000000000000000071dd433f0000000000000000000000000000000000000000");
    expect_agreement("code=c4c3f922c529 bits=32 sequence=1 "
                     "ymm0=0000000000000000000000000000100000000000000000000000000000000000");
    expect_agreement("code=c4e3f916cc0d bits=32 sequence=1 "
                     "ymm1=000000000000f8bf000000000000000000000000000000000000000000000000");
    expect_agreement("code=c4e1f97e1d00190020 bits=32 sequence=1 "
                     "ymm3=000000000000e0c1000000000000000000000000000000000000000000000000");
    expect_agreement("code=65c4c3794cefb3 bits=32 sequence=1 "
                     "ymm7=0000000000000000000000000000103800000000000000000000000000000000 "
                     "ymm11=0000000000000000000000008f11eb3f00000000000000000000000000000000");
}

TEST_F(OracleRegression, VzeroallSparesTheUpperRegistersIn32BitCode)
{
    expect_agreement("code=c5fc77 bits=32 sequence=1 "
                     "ymm15=000000000000000000000000000000000000000000000000000000000000f87f");
    expect_agreement("code=c5f877 bits=32 sequence=1 "
                     "ymm15=000000000000000000000000000000000000000000000000000000005b25e73f");
}

TEST_F(OracleRegression, PointersOfX87HaveNoSelectors)
{
    expect_agreement("code=d920 rax=0x20001d74 "
                     "patch:0x20001d74=00000000000000000000000000000000ffffffffffffef7f");
    expect_agreement("code=0fae0b rbx=0x20001840 patch:0x20001840=00000000000000000000c07f01");
}

TEST_F(OracleRegression, ErrorSummaryFollowsFromFlagsAndMasks)
{
    expect_agreement("code=0fae0b rbx=0x20001840 patch:0x20001840=000080bf0100807f");
}

TEST_F(OracleRegression, StoreThatAnExceptionStopsTouchesNoMemory)
{
    expect_agreement("code=66d917 x87=670400001d00 st0=18f10a8376806baebd34");
    expect_agreement("code=df32 x87=400600000000");
    expect_agreement("code=2ed912 bits=32 x87=640700000000");
}

TEST_F(OracleRegression, EnvironmentOf16BitsHasNoOpcode)
{
    expect_agreement("code=dd242540140020d920d9242544120020 sequence=1 mem:0x20001440="
                     "0100804b000080ffffff7f000100804b0000807f000080bf0000807f000000cf");
}

TEST_F(OracleRegression, UnmaskedUnderflowIsRaisedIfExactToo)
{
    expect_agreement("code=c401fd5cd3 mxcsr=0x5500 "
                     "ymm11=0000000000000000000000000000000000000000000000000000000001000000");
    expect_agreement("code=f20f7dd2 mxcsr=0x6708 ymm2=00000000000000000000000000001000");
}

TEST_F(OracleRegression, GatherThatFaultsLeavesItsMaskExtended)
{
    expect_agreement("code=c4e25990b4 bits=32 ymm4=00000000000000006f014dbe");
    expect_agreement("code=c4e25990 bits=32 ymm4=00000000000000006f014dbe "
                     "ymm3=0000000000000000000000000000000000000000000000000000803f");
}

TEST_F(OracleRegression, VectorsRaiseNoAlignmentCheck)
{
    SKIP_ON_AMD();
    expect_agreement("code=c5fc5c4e33 rsi=0x20001001 flags=0x40202");
    expect_agreement("code=c4e2791317 rdi=0x2000213c flags=0x40202");
    expect_agreement("code=c4c2792c07 rdi=0x20001cf3 flags=0x40202 "
                     "ymm0=00000000000000000000000000000080");
    expect_agreement("code=47dd32 r10=0x200024f3 flags=0x40202");
}

TEST_F(OracleRegression, StringInstructionThatIsTrappedHasResumeFlag)
{
    expect_agreement("code=f2ae rax=0x80 rcx=0x22 rdi=0x20001ef0 flags=0x302");
    expect_agreement("code=f2ac rcx=0x50 rsi=0x2000216c flags=0x302");
}

TEST_F(OracleRegression, PortsAreCheckedBeforeTheCount)
{
    expect_agreement("code=f36e bits=32");
}

TEST_F(OracleRegression, PauseIgnoresRexB)
{
    expect_agreement("code=f34790 r8=0xb8");
}

TEST_F(OracleRegression, AllOfFxsavesAreaIsChecked)
{
    expect_agreement("code=450fae0c38 rdi=0xffffffffffffff98 r8=0x20003ea8");
}

TEST_F(OracleRegression, BoundLooksAtTheLowerBoundFirst)
{
    expect_agreement("code=6299 bits=32 rcx=0x20003ffd patch:0x20003ff9=a45ffd5cac16cf");
}

TEST_F(OracleRegression, ExtractsClearTheRestOfARegisterThatIsKeptInMemory)
{
    expect_agreement("code=664f0f3a14ebec r11=0x8f2e");
    expect_agreement("code=c443f915cfc5 r15=0x12345678");
    expect_agreement("code=66490f3a15e7d8 r15=0x4000000000");
}

TEST_F(OracleRegression, XaddOfARegisterWithItselfDoublesIt)
{
    expect_agreement("code=f2470fc0db r11=0xae");
    expect_agreement("code=470fc0ff r15=0xcb");
    expect_agreement("code=4d0fc1c9 r9=0xcb");
}

TEST_F(OracleRegression, PauseExchangesNothing)
{
    expect_agreement("code=f3664f90 r8=0x10");
}

/// Exact, and not flushed to zero by MXCSR.FTZ: tiny all the same.
TEST_F(OracleRegression, HalfPrecisionUnderflow)
{
    expect_agreement("code=c4e37d1ddbcd sequence=1 mxcsr=0x5c4 "
                     "ymm3=0000000000000000000000000000103800000000000000000000000000000000");
}

/// The header of the area is beyond 4 GiB but for the address size.
TEST_F(OracleRegression, PartsOfASaveAreaAreAddressedInTheInstructionsAddressSize)
{
    SKIP_ON_AMD();
    expect_agreement("code=670faea87dfeffff rax=3");
}

}  // namespace
}  // namespace vmm::oracle
