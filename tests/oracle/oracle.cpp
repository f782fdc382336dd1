// SPDX-License-Identifier: Apache-2.0

#include "oracle/oracle.hpp"

#include <algorithm>
#include <atomic>
#include <csignal>
#include <stdexcept>
#include <utility>

#include <sys/time.h>

#include "oracle/case_text.hpp"
#include "oracle/native_stub.hpp"
#include "oracle/reduce.hpp"

namespace vmm::oracle {

namespace {

/// States tried for each encoding drawn.
constexpr std::uint32_t states_per_code = 4;

/// The case that the engine runs, seen by the clock: when it is at it through some ticks, it is
/// ended.
struct Watch {
    std::atomic<SoftMachine*> running{};
    std::atomic<std::uint64_t> number{};
    std::atomic<std::uint64_t> last_seen{};
    std::atomic<unsigned> ticks{};
    std::atomic<unsigned> patience{};
};
Watch watch;

/// A loop that writes into itself is translated anew each time in stress mode.
unsigned patience_with(x86::soft::TranslationMode mode) noexcept
{
    return mode == x86::soft::TranslationMode::Stress ? 50 : 1;
}

void on_tick(int)
{
    SoftMachine* const running = watch.running.load();
    if (watch.last_seen.exchange(watch.number.load()) != watch.number.load()) {
        watch.ticks.store(0);
    } else if (watch.ticks.fetch_add(1) + 1 >= watch.patience.load() && running != nullptr) {
        running->interrupt();
    }
}

void start_watch()
{
    struct sigaction action = {};
    action.sa_handler = on_tick;
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGVTALRM, &action, nullptr);
    const itimerval tick{{0, 20'000}, {0, 20'000}};
    ::setitimer(ITIMER_VIRTUAL, &tick, nullptr);
}

bool writes_itself(const Case& each, const Outcome& outcome)
{
    const std::uint32_t count = std::min<std::uint32_t>(
        outcome.changes_count, static_cast<std::uint32_t>(outcome.changes.size()));
    return std::any_of(outcome.changes.begin(), outcome.changes.begin() + count,
                       [&](const Change& change) {
                           if (outcome.changes_count > outcome.changes.size()) {
                               return change.offset < code_bytes;  // Maybe.
                           }
                           return change.offset + 8 > each.code_offset &&
                                  change.offset < each.code_offset + each.code_size;
                       });
}

/// Null: it is.
const char* why_not_judged(const Case& each,
                           const Verdict& verdict,
                           const Outcome& native,
                           const Outcome& engine)
{
    if (verdict.not_judged != nullptr) {
        return verdict.not_judged;
    }
    if (native.ending == 1 && native.out.rip == exit_64 && engine.ending == ReachedExit &&
        engine.in_32) {
        return "TF was set on the way to the exit of 32-bit code";
    }
    if (engine.ending == ReachedOther) {
        return "it leads to an exit that is code of another size";
    }
    constexpr std::uint16_t page_fault = 14;
    if (engine.ending == page_fault && engine.address >= context_base &&
        engine.address < signal_stack_base + signal_stack_bytes) {
        return "the judge's own memory is there on the host";
    }
    if (verdict.repeats && writes_itself(each, engine)) {
        return "it overwrites itself while it repeats";
    }
    switch (native.ending) {
    case SystemCall: return "the host's kernel answers";
    // A locked access across cache lines to a page that is not there: hypervisors that watch for
    // split locks may never deliver the fault.
    case TimedOut: return "no end in time on the host";
    default: return nullptr;
    }
}

}  // namespace

Oracle::Oracle(std::uint64_t seed, const std::vector<x86::soft::TranslationMode>& modes)
    : generator_{seed},
      rows_{all_rows()},
      coverage_(rows_.size() + 1)
{
    for (const x86::soft::TranslationMode mode : modes) {
        sides_.push_back({std::make_unique<SoftMachine>(mode),
                          std::make_unique<std::array<Outcome, Batch::capacity>>()});
    }
    // Which rows hold instructions is found out by trying, the same for every seed.
    Generator tries{1};
    for (Row& row : rows_) {
        for (unsigned i = 0; i < 24 && !row.is_known; ++i) {
            row.is_known = tries.encode(row).is_known;
        }
    }
    choose_rows({});
    start_watch();
}

void Oracle::choose_rows(const std::string& part)
{
    known_.clear();
    unknown_.clear();
    next_known_ = 0;
    for (std::uint32_t number = 0; number < rows_.size(); ++number) {
        if (rows_[number].name().find(part) != std::string::npos) {
            (rows_[number].is_known ? known_ : unknown_).push_back(number);
        }
    }
    if (known_.empty() && unknown_.empty()) {
        throw std::runtime_error("no row's name contains '" + part + "'");
    }
}

/// Rows with instructions in turn, the others now and then.
std::uint32_t Oracle::draw_row()
{
    const bool other = known_.empty() || (!unknown_.empty() && generator_.random().percent(4));
    if (other) {
        return unknown_[generator_.random().below(static_cast<std::uint32_t>(unknown_.size()))];
    }
    next_known_ = (next_known_ + 1) % known_.size();
    return known_[next_known_];
}

void Oracle::draw_batch()
{
    Batch& batch = native_.batch();
    generator_.make_image(batch.image);
    for (std::uint32_t i = 0; i < Batch::capacity; i += states_per_code) {
        if (!known_.empty() && generator_.random().percent(sequences_)) {
            draw_sequences(i);
            continue;
        }
        const std::uint32_t row = draw_row();
        const Code code = generator_.encode(rows_[row]);
        for (std::uint32_t k = i; k < i + states_per_code; ++k) {
            row_of_[k] = row;
            generator_.make_case(code, batch.cases[k]);
        }
    }
}

void Oracle::draw_sequences(std::uint32_t first)
{
    for (std::uint32_t k = first; k < first + states_per_code; ++k) {
        row_of_[k] = static_cast<std::uint32_t>(rows_.size());
        const bool is_32 = generator_.random().percent(25);
        generator_.make_sequence(rows_, known_, is_32, native_.batch().cases[k]);
    }
}

void Oracle::run_engine(SoftMachine& machine, const Case& each, Outcome& outcome)
{
    watch.patience.store(patience_with(machine.mode()));
    watch.number.fetch_add(1);
    watch.running.store(&machine);
    const bool is_wrong = planted_ != nullptr &&
                          planted_->concerns(parse({each.code.data(), each.code_size}, each.is_32));
    if (is_wrong && planted_->before != nullptr) {
        Case changed = each;
        planted_->before(changed);
        machine.run(changed, outcome);
    } else {
        machine.run(each, outcome);
    }
    if (is_wrong) {
        planted_->after(each, outcome);
    }
    watch.running.store(nullptr);
}

std::size_t Oracle::run_batch()
{
    draw_batch();
    Batch& batch = native_.batch();
    native_.start(Batch::capacity);
    for (Side& side : sides_) {
        side.machine->set_image(batch.image);
        for (std::uint32_t i = 0; i < Batch::capacity; ++i) {
            run_engine(*side.machine, batch.cases[i], (*side.outcomes)[i]);
        }
    }
    native_.wait();
    const std::vector<std::uint32_t> suspects = find_suspects();
    // Running one again overwrites the batch, so the suspects are taken out of it first.
    std::vector<Case> cases;
    cases.reserve(suspects.size());
    for (const std::uint32_t each : suspects) {
        cases.push_back(batch.cases[each]);
    }
    const Arena image = batch.image;
    for (std::size_t i = 0; i < cases.size(); ++i) {
        // One of a row is enough to work on.
        const std::uint32_t row = row_of_[suspects[i]];
        const std::string name = row < rows_.size() ? rows_[row].name() : "sequences";
        if (row < rows_.size() &&
            std::any_of(differences_.begin(), differences_.end(),
                        [&](const Difference& other) { return other.row == name; })) {
            continue;
        }
        if (!try_case(cases[i], image).empty()) {
            const auto still_differs = [&](const Case& other, const Arena& memory) {
                return try_case(other, memory);
            };
            const Reduced reduced = reduce(cases[i], image, still_differs);
            differences_.push_back({name, reduced.text, to_text(reduced.smallest, reduced.image)});
        }
    }
    return Batch::capacity;
}

std::vector<std::uint32_t> Oracle::find_suspects()
{
    std::vector<std::uint32_t> suspects;
    const Batch& batch = native_.batch();
    for (std::uint32_t i = 0; i < Batch::capacity; ++i) {
        const Verdict verdict = judge(batch.cases[i], batch.outcomes[i]);
        Coverage& coverage = coverage_[row_of_[i]];
        const Outcome& first = (*sides_.front().outcomes)[i];
        if (const char* const why =
                why_not_judged(batch.cases[i], verdict, batch.outcomes[i], first)) {
            ++coverage.not_judged;
            coverage.why = why;
        } else {
            ++(batch.outcomes[i].ending == ReachedExit ? coverage.completed : coverage.excepted);
        }
        if (std::any_of(sides_.begin(), sides_.end(),
                        [&](const Side& side) { return !difference_of(side, i).empty(); })) {
            suspects.push_back(i);
        }
    }
    return suspects;
}

/// Empty where nothing differs, or cannot be judged.
std::string Oracle::difference_of(const Side& side, std::uint32_t number)
{
    const Case& each = native_.batch().cases[number];
    const Outcome& native = native_.batch().outcomes[number];
    const Outcome& engine = (*side.outcomes)[number];
    const Verdict verdict = judge(each, native);
    if (why_not_judged(each, verdict, native, engine) != nullptr) {
        return {};
    }
    std::string text = difference(each, native, engine, verdict);
    if (!text.empty()) {
        text += "  by the engine as " + std::string{name(side.machine->mode())} + "\n";
    }
    return text;
}

std::string Oracle::try_case(const Case& each, const Arena& image)
{
    Batch& batch = native_.batch();
    batch.image = image;
    batch.cases[0] = each;
    native_.start(1);
    for (Side& side : sides_) {
        side.machine->set_image(image);
        run_engine(*side.machine, each, (*side.outcomes)[0]);
    }
    native_.wait();
    for (Side& side : sides_) {
        std::string text = difference_of(side, 0);
        if (!text.empty() && !depends_on_exit_page(side, each)) {
            return text;
        }
    }
    return {};
}

/// Whether what lies around the exits, which is other code on the host, has a part in the outcome.
bool Oracle::depends_on_exit_page(Side& side, const Case& each)
{
    const auto again = std::make_unique<Outcome>();
    side.machine->fill_exit_page(0x5a);
    run_engine(*side.machine, each, *again);
    side.machine->fill_exit_page(SoftMachine::exit_filler);
    return !difference(each, (*side.outcomes)[0], *again, Verdict{}).empty();
}

}  // namespace vmm::oracle
