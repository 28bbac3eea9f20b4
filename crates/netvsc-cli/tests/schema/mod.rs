//! What verbs print as JSON, against the schemas of the repository.

use std::path::Path;

use serde_json::Value;

/// Checks JSON against a schema of the repository.
pub fn valid(text: &str, schema: &str) -> Value {
    let value: Value = serde_json::from_str(text).expect("JSON");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema");
    let schema = std::fs::read_to_string(folder.join(schema)).expect("a schema");
    let mut schema: Value = serde_json::from_str(&schema).expect("a schema is JSON");
    close(&mut schema);
    let validator = jsonschema::validator_for(&schema).expect("a schema that is one");
    let errors: Vec<_> =
        validator.iter_errors(&value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}\n{text}");
    value
}

/// New keys may come in a version, so the schema lets them; but here each must stand in it.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(close);
            if map.contains_key("properties") && map.contains_key("required") {
                map.entry("additionalProperties").or_insert(Value::Bool(false));
            }
        }
        Value::Array(all) => all.iter_mut().for_each(close),
        _ => {}
    }
}
