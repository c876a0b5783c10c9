#include "package/schema.h"

#include <memory>
#include <nlohmann/json.hpp>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validation_results.hpp>
#include <valijson/validator.hpp>

#include "manifest_schema.h"
#include "text.h"

namespace rare_trt {
namespace {

using valijson::adapters::NlohmannJsonAdapter;

const valijson::Schema& schema() {
  static const std::unique_ptr<const valijson::Schema> parsed = [] {
    const auto json = nlohmann::json::parse(kManifestSchema);
    auto found = std::make_unique<valijson::Schema>();
    valijson::SchemaParser(valijson::SchemaParser::kDraft7)
        .populateSchema(NlohmannJsonAdapter(json), *found);
    return found;
  }();
  return *parsed;
}

}  // namespace

std::string schema_fault(const nlohmann::json& values) {
  valijson::Validator validator(valijson::Validator::kStrongTypes);
  valijson::ValidationResults results;
  if (validator.validate(schema(), NlohmannJsonAdapter(values), &results)) return "";
  std::string place, fault = "it differs";
  valijson::ValidationResults::Error error;
  // The last error is the innermost one.
  while (results.popError(error)) {
    place.clear();
    for (const std::string& part : error.context) place += part == "<root>" ? "manifest" : part;
    fault = error.description;
  }
  return text(place, ": ", fault);
}

}  // namespace rare_trt
