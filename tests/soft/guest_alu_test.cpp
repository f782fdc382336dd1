// SPDX-License-Identifier: Apache-2.0

/// @file
/// Integer instructions against the host CPU: the same bytes on the same registers, flags and
/// memory.

#include <random>

#include <gtest/gtest.h>

#include "soft/guest_harness.hpp"

namespace vmm::x86::soft::test {
namespace {

constexpr std::uint64_t arithmetic = 0x8d5;
constexpr std::uint64_t cf = 0x1;
constexpr std::uint64_t af = 0x10;
constexpr std::uint64_t zf = 0x40;
constexpr std::uint64_t of = 0x800;

struct Registers {
    std::array<std::uint64_t, 16> gpr{};
    std::uint64_t flags{};
};

/// Executes one instruction on the host with all registers but RSP set.
class Native {
public:
    Native()
        : code_(static_cast<std::uint8_t*>(::mmap(nullptr,
                                                  4096,
                                                  PROT_READ | PROT_WRITE | PROT_EXEC,
                                                  MAP_PRIVATE | MAP_ANONYMOUS,
                                                  -1,
                                                  0)))
    {
    }
    ~Native() { ::munmap(code_, 4096); }
    Native(const Native&) = delete;
    Native& operator=(const Native&) = delete;
    Native(Native&&) = delete;
    Native& operator=(Native&&) = delete;

    void run(std::span<const std::uint8_t> instruction, Registers& registers)
    {
        std::vector<std::uint8_t> bytes{0x53, 0x55, 0x41, 0x54, 0x41, 0x55,
                                        0x41, 0x56, 0x41, 0x57, 0x57,        // push …, rdi
                                        0xff, 0xb7, 0x80, 0x00, 0x00, 0x00,  // push [rdi+128]
                                        0x9d};                               // popfq
        for (const unsigned r :
             {0U, 1U, 2U, 3U, 5U, 6U, 8U, 9U, 10U, 11U, 12U, 13U, 14U, 15U, 7U}) {
            move(bytes, 0x8b, r);
        }
        bytes.insert(bytes.end(), instruction.begin(), instruction.end());
        bytes.insert(bytes.end(), {0x48, 0x87, 0x3c, 0x24});  // xchg rdi, [rsp]
        for (const unsigned r : {0U, 1U, 2U, 3U, 5U, 6U, 8U, 9U, 10U, 11U, 12U, 13U, 14U, 15U}) {
            move(bytes, 0x89, r);
        }
        bytes.push_back(0x58);  // pop rax: the guest's RDI
        bytes.insert(bytes.end(), {0x48, 0x89, 0x47, 0x38, 0x9c, 0x58});  // mov; pushfq; pop rax
        bytes.insert(bytes.end(), {0x48, 0x89, 0x87, 0x80, 0x00, 0x00, 0x00});
        bytes.insert(bytes.end(),
                     {0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xfc, 0xc3});
        std::memcpy(code_, bytes.data(), bytes.size());
        // SAFETY: the bytes are a function of this type.
        reinterpret_cast<void (*)(Registers*)>(code_)(&registers);
    }

private:
    static void move(std::vector<std::uint8_t>& bytes, std::uint8_t opcode, unsigned number)
    {
        bytes.push_back(number >= 8 ? 0x4c : 0x48);
        bytes.push_back(opcode);
        bytes.push_back(static_cast<std::uint8_t>(0x47U | ((number & 7U) << 3U)));
        bytes.push_back(static_cast<std::uint8_t>(number * 8U));
    }
    std::uint8_t* code_;
};

struct Form {
    std::vector<std::uint8_t> opcode;
    int group{-1};         ///< ModRM.reg where it is an opcode extension.
    unsigned immediate{};  ///< Bytes; 4 means by operand size (2 or 4).
    std::uint64_t compared{arithmetic};
    bool bytes{};  ///< A byte operation.
    bool lockable{};
    bool modrm{true};
};

std::vector<Form> forms()
{
    std::vector<Form> all;
    const auto add = [&](Form form) { all.push_back(std::move(form)); };
    for (unsigned operation = 0; operation < 8; ++operation) {
        const bool logic = operation == 1 || operation == 4 || operation == 6;
        const std::uint64_t compared = logic ? arithmetic & ~af : arithmetic;
        const auto opcode = [&](unsigned low) {
            return static_cast<std::uint8_t>(operation * 8 + low);
        };
        const bool lock = operation != 7;
        add({{opcode(0)}, -1, 0, compared, true, lock});
        add({{opcode(1)}, -1, 0, compared, false, lock});
        add({{opcode(2)}, -1, 0, compared, true});
        add({{opcode(3)}, -1, 0, compared});
        add({{opcode(4)}, -1, 1, compared, true, false, false});
        add({{opcode(5)}, -1, 4, compared, false, false, false});
        const auto group = static_cast<int>(operation);
        add({{0x80}, group, 1, compared, true, lock});
        add({{0x81}, group, 4, compared, false, lock});
        add({{0x83}, group, 1, compared, false, lock});
    }
    add({{0x84}, -1, 0, arithmetic & ~af, true});
    add({{0x85}, -1, 0, arithmetic & ~af});
    add({{0xa8}, -1, 1, arithmetic & ~af, true, false, false});
    add({{0xa9}, -1, 4, arithmetic & ~af, false, false, false});
    add({{0xf6}, 0, 1, arithmetic & ~af, true});
    add({{0xf7}, 0, 4, arithmetic & ~af});
    for (const int group : {2, 3}) {
        add({{0xf6}, group, 0, arithmetic, true, true});
        add({{0xf7}, group, 0, arithmetic, false, true});
    }
    for (const int group : {0, 1}) {
        add({{0xfe}, group, 0, arithmetic, true, true});
        add({{0xff}, group, 0, arithmetic, false, true});
    }
    for (const int group : {4, 5}) {
        // What is undefined is what the host makes of it.
        add({{0xf6}, group, 0, arithmetic, true});
        add({{0xf7}, group, 0, arithmetic});
    }
    add({{0x0f, 0xaf}, -1, 0, arithmetic});
    add({{0x69}, -1, 4, arithmetic});
    add({{0x6b}, -1, 1, arithmetic});
    for (int group = 0; group < 8; ++group) {
        const std::uint64_t compared = group < 4 ? arithmetic : arithmetic & ~af;
        add({{0xd0}, group, 0, compared, true});
        add({{0xd1}, group, 0, compared});
        // Beyond a count of 1, OF is undefined; the rest is what the host makes of it.
        add({{0xd2}, group, 0, compared & ~of, true});
        add({{0xd3}, group, 0, compared & ~of});
        add({{0xc0}, group, 1, compared & ~of, true});
        add({{0xc1}, group, 1, compared & ~of});
    }
    for (const unsigned opcode : {0xa4U, 0xacU}) {
        add({{0x0f, static_cast<std::uint8_t>(opcode)}, -1, 1, 0});
        add({{0x0f, static_cast<std::uint8_t>(opcode + 1)}, -1, 0, 0});
    }
    for (const unsigned opcode : {0xb6U, 0xb7U, 0xbeU, 0xbfU}) {
        add({{0x0f, static_cast<std::uint8_t>(opcode)}, -1});
    }
    add({{0x63}, -1});
    add({{0x88}, -1, 0, arithmetic, true});
    add({{0x89}, -1});
    add({{0x8a}, -1, 0, arithmetic, true});
    add({{0x8b}, -1});
    add({{0xc6}, 0, 1, arithmetic, true});
    add({{0xc7}, 0, 4});
    add({{0x86}, -1, 0, arithmetic, true, true});
    add({{0x87}, -1, 0, arithmetic, false, true});
    add({{0x0f, 0xb0}, -1, 0, arithmetic, true, true});
    add({{0x0f, 0xb1}, -1, 0, arithmetic, false, true});
    add({{0x0f, 0xc0}, -1, 0, arithmetic, true, true});
    add({{0x0f, 0xc1}, -1, 0, arithmetic, false, true});
    for (int group = 4; group < 8; ++group) {
        add({{0x0f, 0xba}, group, 1, cf, false, group != 4});
    }
    for (const unsigned opcode : {0xbcU, 0xbdU}) {
        add({{0x0f, static_cast<std::uint8_t>(opcode)}, -1, 0, zf});
    }
    for (unsigned code = 0; code < 16; ++code) {
        add({{0x0f, static_cast<std::uint8_t>(0x40 + code)}, -1});
        add({{0x0f, static_cast<std::uint8_t>(0x90 + code)}, 0, 0, arithmetic, true});
    }
    for (const unsigned opcode : {0x98U, 0x99U, 0x9eU, 0x9fU, 0xf5U, 0xf8U, 0xf9U}) {
        add({{static_cast<std::uint8_t>(opcode)}, -1, 0, arithmetic, false, false, false});
    }
    return all;
}

class GuestAlu : public ::testing::Test {
protected:
    GuestAlu() { guest_.long_mode(); }

    [[nodiscard]] std::uint64_t interesting()
    {
        constexpr std::array<std::uint64_t, 12> edges{0,
                                                      1,
                                                      0x7f,
                                                      0x80,
                                                      0xff,
                                                      0x7fff,
                                                      0x8000,
                                                      0xffff,
                                                      0x7fff'ffff,
                                                      0x8000'0000,
                                                      0x8000'0000'0000'0000,
                                                      ~std::uint64_t{0}};
        return random_() % 3 == 0 ? edges[random_() % edges.size()] : random_();
    }

    /// The bytes of one instruction; RBX is the pointer of memory operands.
    [[nodiscard]] std::vector<std::uint8_t> encode(const Form& form, bool memory)
    {
        std::vector<std::uint8_t> bytes;
        const bool lock = memory && form.lockable && random_() % 3 == 0;
        if (lock) {
            bytes.push_back(0xf0);
        }
        const auto size = static_cast<unsigned>(random_() % 3);  // 16, 32, 64 bits
        if (size == 0 && !form.bytes) {
            bytes.push_back(0x66);
        }
        unsigned rex = size == 2 && !form.bytes ? 8U : 0U;
        const bool extended = random_() % 2 == 0;
        // RSP is the host's, RBX the pointer.
        const auto pick = [&] {
            constexpr std::array<unsigned, 4> low{Rax, Rcx, Rdx, Rsi};
            return extended && random_() % 2 == 0 ? 8U + static_cast<unsigned>(random_() % 8)
                                                  : low[random_() % low.size()];
        };
        const unsigned reg = form.group >= 0 ? static_cast<unsigned>(form.group) : pick();
        const unsigned rm = memory ? unsigned{Rbx} : pick();
        if (form.modrm) {
            rex |= (form.group < 0 && reg >= 8 ? 4U : 0U) | (rm >= 8 ? 1U : 0U);
        }
        if (rex != 0 || (extended && form.modrm)) {
            bytes.push_back(static_cast<std::uint8_t>(0x40U | rex));
        }
        bytes.insert(bytes.end(), form.opcode.begin(), form.opcode.end());
        if (form.modrm) {
            const unsigned mod = memory ? (random_() % 2 == 0 ? 0U : 1U) : 3U;
            bytes.push_back(
                static_cast<std::uint8_t>((mod << 6U) | ((reg & 7U) << 3U) | (rm & 7U)));
            if (mod == 1) {
                bytes.push_back(static_cast<std::uint8_t>(random_() % 32));
            }
        }
        const unsigned immediate = form.immediate == 4 && size == 0 ? 2U : form.immediate;
        for (unsigned i = 0; i < immediate; ++i) {
            bytes.push_back(static_cast<std::uint8_t>(interesting()));
        }
        return bytes;
    }

    void compare(const Form& form, bool memory)
    {
        const std::vector<std::uint8_t> bytes = encode(form, memory);
        Registers before;
        for (std::uint64_t& value : before.gpr) {
            value = interesting();
        }
        before.flags = (random_() & arithmetic) | 2U;
        // The host may take very long over a locked access that crosses a line.
        alignas(64) std::array<std::uint64_t, 8> data{};
        for (std::uint64_t& value : data) {
            value = interesting();
        }
        const std::uint64_t place = Guest::data + random_() % 64;
        std::memcpy(guest_.ram.at(place), data.data(), sizeof(data));
        guest_.vm->memory_written(Gpa{Guest::code}, 32);
        guest_.load(Guest::code, bytes);
        guest_.put<std::uint8_t>(Guest::code + bytes.size(), 0xf4);
        for (unsigned i = 0; i < 16; ++i) {
            guest_.reg(static_cast<Gpr>(i)) = before.gpr[i];
        }
        guest_.reg(Rbx) = place;
        guest_.state().rip = Guest::code;
        guest_.state().rflags = before.flags;
        guest_.reg(Rsp) = Guest::stack;
        ASSERT_EQ(guest_.run(), Reason::Halt);

        Registers after = before;
        // SAFETY: a number to the instruction under test, which stays within `data`.
        after.gpr[Rbx] = reinterpret_cast<std::uint64_t>(data.data());
        native_.run(bytes, after);
        std::string text;
        for (const std::uint8_t byte : bytes) {
            constexpr std::string_view digits = "0123456789abcdef";
            text += digits[byte >> 4U];
            text += digits[byte & 15U];
            text += ' ';
        }
        ASSERT_EQ(guest_.state().rip, Guest::code + bytes.size() + 1) << text;
        for (unsigned i = 0; i < 16; ++i) {
            if (i != Rsp && i != Rbx) {
                ASSERT_EQ(guest_.reg(static_cast<Gpr>(i)), after.gpr[i])
                    << text << "register " << i;
            }
        }
        ASSERT_EQ(guest_.state().rflags & form.compared, after.flags & form.compared) << text;
        ASSERT_EQ(std::memcmp(guest_.ram.at(place), data.data(), sizeof(data)), 0) << text;
    }

    Guest guest_;
    Native native_;
    std::mt19937_64 random_{20261125};
};

TEST_F(GuestAlu, RandomOperandsGiveTheHostsResults)
{
    for (const Form& form : forms()) {
        for (int i = 0; i < 120; ++i) {
            // Counts beyond 16-bit operands are undefined for double shifts: not compared here.
            const bool double_shift = form.opcode.size() == 2 && (form.opcode[1] & 0xf6U) == 0xa4;
            if (double_shift) {
                continue;
            }
            compare(form, form.modrm && i % 2 == 0);
            if (HasFatalFailure()) {
                return;
            }
        }
    }
}

/// SHLD and SHRD by arithmetic on what is defined.
TEST_F(GuestAlu, DoubleShifts)
{
    for (int i = 0; i < 300; ++i) {
        const std::uint64_t a = interesting();
        const std::uint64_t b = interesting();
        const unsigned count = static_cast<unsigned>(random_() % 64);
        const bool left = i % 2 == 0;
        guest_.vm->memory_written(Gpa{Guest::code}, 32);
        // shld/shrd rax, rdx, cl; hlt
        guest_.load(Guest::code,
                    {0x48, 0x0f, left ? std::uint8_t{0xa5} : std::uint8_t{0xad}, 0xd0, 0xf4});
        guest_.state().rip = Guest::code;
        guest_.reg(Rax) = a;
        guest_.reg(Rdx) = b;
        guest_.reg(Rcx) = count;
        ASSERT_EQ(guest_.run(), Reason::Halt);
        std::uint64_t expected = a;
        if (count != 0) {
            expected =
                left ? (a << count) | (b >> (64 - count)) : (a >> count) | (b << (64 - count));
        }
        EXPECT_EQ(guest_.reg(Rax), expected) << count;
    }
}

/// DIV and IDIV: #DE exactly where the quotient does not fit.
TEST_F(GuestAlu, Division)
{
    __extension__ using Wide = __int128;
    __extension__ using UnsignedWide = unsigned __int128;
    for (int i = 0; i < 2000; ++i) {
        const bool is_signed = i % 2 == 0;
        const std::uint64_t low = interesting();
        const std::uint64_t high =
            i % 3 == 0 ? interesting() : (is_signed && i % 5 == 0 ? ~std::uint64_t{0} : 0U);
        const std::uint64_t divisor = interesting();
        guest_.vm->memory_written(Gpa{Guest::code}, 32);
        guest_.load(Guest::code,
                    {0x48, 0xf7, is_signed ? std::uint8_t{0xf9} : std::uint8_t{0xf1}, 0xf4});
        guest_.state().rip = Guest::code;
        guest_.reg(Rsp) = Guest::stack;
        guest_.reg(Rax) = low;
        guest_.reg(Rdx) = high;
        guest_.reg(Rcx) = divisor;
        ASSERT_EQ(guest_.run(), Reason::Halt);
        const UnsignedWide dividend = (static_cast<UnsignedWide>(high) << 64U) | low;
        bool fits = divisor != 0;
        std::uint64_t quotient = 0;
        std::uint64_t remainder = 0;
        if (fits && is_signed) {
            const auto wide = static_cast<Wide>(dividend);
            const auto by = static_cast<Wide>(static_cast<std::int64_t>(divisor));
            constexpr Wide lowest = static_cast<Wide>(static_cast<UnsignedWide>(1) << 127U);
            fits = !(wide == lowest && by == -1);
            if (fits) {
                const Wide result = wide / by;
                fits = result == static_cast<std::int64_t>(result);
                quotient = static_cast<std::uint64_t>(result);
                remainder = static_cast<std::uint64_t>(wide % by);
            }
        } else if (fits) {
            fits = (dividend / divisor) >> 64U == 0;
            quotient = static_cast<std::uint64_t>(dividend / divisor);
            remainder = static_cast<std::uint64_t>(dividend % divisor);
        }
        ASSERT_EQ(guest_.halted_by_vector(), fits ? -1 : 0)
            << std::hex << high << ' ' << low << ' ' << divisor;
        if (fits) {
            EXPECT_EQ(guest_.reg(Rax), quotient);
            EXPECT_EQ(guest_.reg(Rdx), remainder);
        }
    }
}

/// All 8-bit divisions of one divisor, signed.
TEST_F(GuestAlu, ByteDivision)
{
    guest_.load(Guest::code, {0xf6, 0xf9, 0xf4});  // idiv cl
    for (const int divisor : {-128, -3, -1, 0, 1, 7, 127}) {
        for (int dividend = -32768; dividend < 32768; dividend += 97) {
            guest_.state().rip = Guest::code;
            guest_.reg(Rsp) = Guest::stack;
            guest_.reg(Rax) = static_cast<std::uint16_t>(dividend);
            guest_.reg(Rcx) = static_cast<std::uint8_t>(divisor);
            ASSERT_EQ(guest_.run(), Reason::Halt);
            const bool fits =
                divisor != 0 && dividend / divisor >= -128 && dividend / divisor <= 127;
            ASSERT_EQ(guest_.halted_by_vector(), fits ? -1 : 0) << dividend << '/' << divisor;
            if (fits) {
                ASSERT_EQ(guest_.reg(Rax) & 0xffU, static_cast<std::uint8_t>(dividend / divisor));
                ASSERT_EQ((guest_.reg(Rax) >> 8U) & 0xffU,
                          static_cast<std::uint8_t>(dividend % divisor));
            }
        }
    }
}

TEST_F(GuestAlu, BitStringsReachBeyondTheOperand)
{
    guest_.load(Guest::code, {0x48, 0x0f, 0xab, 0x0b, 0xf4});  // bts [rbx], rcx
    for (const std::int64_t bit : {0L, 63L, 64L, 1000L, -1L, -64L, -65L}) {
        std::memset(guest_.ram.at(Guest::data), 0, 4096);
        guest_.state().rip = Guest::code;
        guest_.reg(Rbx) = Guest::data + 0x800;
        guest_.reg(Rcx) = static_cast<std::uint64_t>(bit);
        ASSERT_EQ(guest_.run(), Reason::Halt);
        const auto position = static_cast<std::uint64_t>(0x800 * 8 + bit);
        EXPECT_EQ(guest_.get<std::uint8_t>(Guest::data + position / 8), 1U << (position % 8))
            << bit;
    }
}

/// DAA, DAS, AAA, AAS and AAM in 32-bit code against the manual's examples and identities.
TEST_F(GuestAlu, DecimalAdjustment)
{
    Guest guest;
    guest.protected_mode();
    // add al, cl; daa; hlt
    guest.load(Guest::code, {0x00, 0xc8, 0x27, 0xf4});
    for (unsigned a = 0; a < 100; ++a) {
        for (unsigned b = 0; b < 100; b += 7) {
            guest.state().rip = Guest::code;
            guest.reg(Rax) = a / 10 * 16 + a % 10;
            guest.reg(Rcx) = b / 10 * 16 + b % 10;
            ASSERT_EQ(guest.run(), Reason::Halt);
            const unsigned sum = (a + b) % 100;
            EXPECT_EQ(guest.reg(Rax), sum / 10 * 16 + sum % 10);
            EXPECT_EQ((guest.state().rflags & cf) != 0, a + b > 99);
        }
    }
    guest.vm->memory_written(Gpa{Guest::code}, 16);
    guest.load(Guest::code, {0x28, 0xc8, 0x2f, 0xf4});  // sub al, cl; das
    for (unsigned a = 0; a < 100; a += 3) {
        for (unsigned b = 0; b < 100; b += 7) {
            guest.state().rip = Guest::code;
            guest.reg(Rax) = a / 10 * 16 + a % 10;
            guest.reg(Rcx) = b / 10 * 16 + b % 10;
            ASSERT_EQ(guest.run(), Reason::Halt);
            const unsigned difference = (a + 100 - b) % 100;
            EXPECT_EQ(guest.reg(Rax), difference / 10 * 16 + difference % 10);
            EXPECT_EQ((guest.state().rflags & cf) != 0, a < b);
        }
    }
    guest.vm->memory_written(Gpa{Guest::code}, 16);
    guest.load(Guest::code, {0xd4, 0x0a, 0xf4});  // aam
    guest.state().rip = Guest::code;
    guest.reg(Rax) = 0x57;  // 87
    ASSERT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 0x0807U);
}

TEST_F(GuestAlu, CompareExchangeOfSixteenBytes)
{
    guest_.load(Guest::code, {0xf0, 0x48, 0x0f, 0xc7, 0x0e, 0xf4});  // lock cmpxchg16b [rsi]
    for (const bool equal : {true, false}) {
        guest_.put<std::uint64_t>(Guest::data, 1);
        guest_.put<std::uint64_t>(Guest::data + 8, 2);
        guest_.state().rip = Guest::code;
        guest_.reg(Rsi) = Guest::data;
        guest_.reg(Rax) = equal ? 1 : 5;
        guest_.reg(Rdx) = 2;
        guest_.reg(Rbx) = 3;
        guest_.reg(Rcx) = 4;
        ASSERT_EQ(guest_.run(), Reason::Halt);
        EXPECT_EQ((guest_.state().rflags & zf) != 0, equal);
        EXPECT_EQ(guest_.get<std::uint64_t>(Guest::data), equal ? 3U : 1U);
        EXPECT_EQ(guest_.get<std::uint64_t>(Guest::data + 8), equal ? 4U : 2U);
        EXPECT_EQ(guest_.reg(Rax), 1U);
    }
    guest_.state().rip = Guest::code;
    guest_.reg(Rsi) = Guest::data + 8;
    ASSERT_EQ(guest_.run(), Reason::Halt);
    EXPECT_EQ(guest_.halted_by_vector(), 13);
}

TEST_F(GuestAlu, LockedAccessAcrossPagesIsOneAccess)
{
    guest_.load(Guest::code, {0xf0, 0x48, 0x0f, 0xc1, 0x06, 0xf4});  // lock xadd [rsi], rax
    const std::uint64_t at = Guest::data + 0xffc;
    guest_.put<std::uint64_t>(at, 0x1'0000'0000 - 1);
    guest_.reg(Rsi) = at;
    guest_.reg(Rax) = 1;
    ASSERT_EQ(guest_.run(), Reason::Halt);
    EXPECT_EQ(guest_.get<std::uint64_t>(at), 0x1'0000'0000U);
    EXPECT_EQ(guest_.reg(Rax), 0xffff'ffffU);
}

}  // namespace
}  // namespace vmm::x86::soft::test
