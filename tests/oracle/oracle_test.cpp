// SPDX-License-Identifier: Apache-2.0

/// @file
/// The oracle for as long as continuous integration has time for, and that it would find bugs.

#include <ctime>
#include <stdexcept>

#include <gtest/gtest.h>

#include "effort.hpp"
#include "oracle/case_text.hpp"
#include "oracle/oracle.hpp"

namespace vmm::oracle {
namespace {

/// How many cases fit into a minute of this build.
constexpr std::uint64_t usual_cases = 600'000;

using Modes = std::vector<x86::soft::TranslationMode>;

class OracleTest : public testing::Test {
protected:
    void SetUp() override { make({x86::soft::TranslationMode::Off}); }

    void make(const Modes& modes)
    {
        try {
            oracle = std::make_unique<Oracle>(test::effort("VMM_ORACLE_SEED", 1), modes);
        } catch (const std::exception& error) {
            GTEST_SKIP() << "this host cannot judge: " << error.what();
        }
    }

    void run(std::uint64_t cases)
    {
        for (std::uint64_t done = 0; done < cases && oracle->differences().empty();) {
            done += oracle->run_batch();
        }
    }

    std::unique_ptr<Oracle> oracle;
};

/// Each case interpreted, and translated when it is first executed.
TEST_F(OracleTest, HostAndEngineAgree)
{
    make({x86::soft::TranslationMode::Off, x86::soft::TranslationMode::Stress});
    oracle->set_sequences(5);
    run(test::effort("VMM_ORACLE_CASES", usual_cases));
    for (const Difference& each : oracle->differences()) {
        ADD_FAILURE() << "row " << each.row << ":\n"
                      << each.text << "expect_agreement(\"" << each.test << "\");";
    }
}

TEST_F(OracleTest, EveryRowWithInstructionsIsDrawn)
{
    oracle->set_sequences(0);
    run(8 * oracle->rows().size());
    for (std::size_t number = 0; number < oracle->rows().size(); ++number) {
        const Coverage& each = oracle->coverage()[number];
        if (oracle->rows()[number].is_known) {
            EXPECT_NE(each.completed + each.excepted + each.not_judged, 0U)
                << oracle->rows()[number].name();
        }
    }
}

class PlantedBugTest : public OracleTest, public testing::WithParamInterface<PlantedBug> {};

TEST_P(PlantedBugTest, IsFound)
{
    oracle->plant(GetParam());
    run(usual_cases);
    ASSERT_FALSE(oracle->differences().empty());
    Case each;
    Arena image{};
    from_text(oracle->differences().front().test, each, image);
    EXPECT_TRUE(GetParam().concerns(parse({each.code.data(), each.code_size}, each.is_32)))
        << oracle->differences().front().test << "\n"
        << oracle->differences().front().text;
}

INSTANTIATE_TEST_SUITE_P(Oracle,
                         PlantedBugTest,
                         testing::ValuesIn(planted_bugs().begin(), planted_bugs().end()),
                         [](const testing::TestParamInfo<PlantedBug>& bug) {
                             std::string name = bug.param.name;
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name;
                         });

TEST(CaseText, ReadsWhatItWrites)
{
    Generator generator{7};
    const std::vector<Row> rows = all_rows();
    Arena image{};
    generator.make_image(image);
    for (std::size_t number = 0; number < rows.size(); number += 97) {
        Case each = plain_case();
        generator.make_case(generator.encode(rows[number]), each);
        Case again;
        Arena again_image{};
        const std::string text = to_text(each, image);
        from_text(text, again, again_image);
        EXPECT_EQ(to_text(again, again_image), text);
    }
}

TEST(CaseText, RefusesWhatItDoesNotKnow)
{
    Case each;
    Arena image{};
    EXPECT_THROW(from_text("code=90 colour=1", each, image), std::invalid_argument);
    EXPECT_THROW(from_text("code=900", each, image), std::invalid_argument);
    EXPECT_THROW(from_text("code=90 mem:0x1000=00", each, image), std::invalid_argument);
}

}  // namespace
}  // namespace vmm::oracle
