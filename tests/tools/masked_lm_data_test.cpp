#include <doctest/doctest.h>

#include <algorithm>
#include <map>

#include "tests/support/op_test.h"
#include "tests/support/temporary_folder.h"
#include "tools/console.h"
#include "tools/masked_lm_data.h"

namespace elwise::testing {

using tools::MaskedLmBatch;
using tools::MaskedLmData;

TEST_CASE("a batch masks round(0.15 batch length) distinct positions and keeps their labels") {
  MaskedLmData data(1000, 1);
  int64_t masked = 0, kept = 0, total = 0;
  for (int i = 0; i < 20; ++i) {
    const MaskedLmBatch batch = data.next(4, 128, kCpu);
    const auto positions = batch.masked.to_vector<int64_t>(), labels = batch.labels.to_vector<int64_t>();
    const auto tokens = batch.input.tokens.to_vector<int64_t>();
    CHECK(positions.size() == 77);
    CHECK(std::is_sorted(positions.begin(), positions.end()));
    CHECK(std::adjacent_find(positions.begin(), positions.end()) == positions.end());
    for (size_t j = 0; j < positions.size(); ++j) {
      CHECK((labels[j] >= 0 && labels[j] < 999));
      masked += tokens[static_cast<size_t>(positions[j])] == 999;
      kept += tokens[static_cast<size_t>(positions[j])] == labels[j];
      ++total;
    }
  }
  CHECK(static_cast<double>(masked) / static_cast<double>(total) == doctest::Approx(0.8).epsilon(0.05));
  CHECK(static_cast<double>(kept) / static_cast<double>(total) == doctest::Approx(0.1).epsilon(0.25));
}

TEST_CASE("synthetic tokens follow Zipf's law") {
  MaskedLmData data(1001, 2);
  std::map<int64_t, double> counts;
  for (int i = 0; i < 50; ++i) {
    for (const int64_t token : data.next(8, 256, kCpu).input.tokens.to_vector<int64_t>()) ++counts[token];
  }
  CHECK(counts[0] / counts[9] == doctest::Approx(7.27).epsilon(0.15));  // log(2 / 1) / log(11 / 10)
}

TEST_CASE("a seed decides the stream; text comes in its order") {
  MaskedLmData a(500, 5), b(500, 5), c(500, 6);
  const auto tokens = [](MaskedLmData& data) {
    return data.next(2, 64, kCpu).input.tokens.to_vector<int64_t>();
  };
  const auto first = tokens(a);
  CHECK(first == tokens(b));
  CHECK(first != tokens(c));
  CHECK(first != tokens(a));

  const TemporaryFolder folder;
  std::string alphabet = "abcdefghijklmnopqrstuvwxyz";
  MaskedLmData text(folder.write("text.txt", alphabet), 300, 1);
  const auto bytes = tokens(text);
  int64_t successors = 0;
  for (size_t i = 1; i < bytes.size(); ++i) successors += (bytes[i] - 'a') == (bytes[i - 1] - 'a' + 1) % 26;
  CHECK(successors > 80);  // of 127; the others touch a masked position
}

TEST_CASE("sizes are understood with their units") {
  CHECK(tools::parse_bytes("24GiB") == int64_t{24} << 30);
  CHECK(tools::parse_bytes("1.5 MB") == 1'500'000);
  CHECK(tools::parse_bytes("640") == 640);
  for (const char* bad : {"", "GiB", "-1GiB", "0", "12parsecs", "1e40GiB", "nan"}) {
    CHECK_THROWS_AS(tools::parse_bytes(bad), tools::UsageError);
  }
}

}  // namespace elwise::testing
