//! What we send to Firecracker, and what we accept from it, against its own description of its API: the oldest and the
//! newest that we know. The files in `testdata` are the parts of `firecracker.yaml` that these calls use, without
//! prose; Apache-2.0, by the Firecracker project.

use hyper::Method;
use serde_json::{Value, json};

use super::FirecrackerOptions;
use super::api::Api;
use super::calls::{self, Call, Version};
use super::scripted::{Act, serve};

const DESCRIPTIONS: [&str; 2] =
    [include_str!("testdata/openapi-1.5.0.json"), include_str!("testdata/openapi-1.16.1.json")];

/// One release's description, whose objects have no properties but those that it names: neither has Firecracker.
struct Description {
    version: String,
    paths: Value,
    definitions: Value,
}

impl Description {
    fn all() -> impl Iterator<Item = Self> {
        DESCRIPTIONS.into_iter().map(|text| {
            let mut whole: Value = serde_json::from_str(text).unwrap();
            for definition in whole["definitions"].as_object_mut().unwrap().values_mut() {
                if definition["type"] == "object" {
                    definition["additionalProperties"] = false.into();
                }
            }
            Self {
                version: whole["info"]["version"].as_str().unwrap().into(),
                paths: whole["paths"].take(),
                definitions: whole["definitions"].take(),
            }
        })
    }

    fn has_huge_pages(&self) -> bool {
        self.version != "1.5.0"
    }

    /// What it says of `method` at `path`.
    fn operation(&self, method: &Method, path: &str) -> &Value {
        let described = match path.starts_with("/drives/") {
            true => "/drives/{drive_id}",
            false => path,
        };
        let operation = &self.paths[described][method.as_str().to_lowercase()];
        assert!(operation.is_object(), "{} has no {method} {path}", self.version);
        operation
    }

    fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        // Swagger 2.0 is JSON Schema's draft 4, where a `$ref` hides what stands beside it.
        let whole = json!({ "allOf": [schema], "definitions": self.definitions });
        let validator = jsonschema::draft4::new(&whole).unwrap();
        validator.validate(value).map_err(|error| format!("{}: {value}: {error}", self.version))
    }

    fn check_request(&self, method: &Method, path: &str, body: &Value) -> Result<(), String> {
        let operation = self.operation(method, path);
        let parameters = operation["parameters"].as_array().unwrap();
        let described = parameters.iter().find(|parameter| parameter["in"] == "body").unwrap();
        self.check(&described["schema"], body)
    }
}

fn every_option() -> FirecrackerOptions {
    FirecrackerOptions {
        cpu_template: Some("T2".into()),
        disk_mb_per_second: Some(100),
        disk_operations_per_second: Some(1000),
        huge_pages: true,
        ..FirecrackerOptions::default()
    }
}

fn every_call(options: &FirecrackerOptions) -> Vec<Call<'_>> {
    let hardware = calls::Hardware { vcpus: 2, memory_mb: 256, durable: false, sidecar: true };
    let booting = calls::boot(options, "quiet", hardware);
    booting.into_iter().chain([Call::Pause, calls::freeze(), calls::load()]).collect()
}

#[tokio::test]
async fn every_request_is_one_that_firecracker_describes() {
    let dir = tempfile::tempdir().unwrap();
    for options in [FirecrackerOptions::default(), every_option()] {
        let calls = every_call(&options);
        let socket = dir.path().join(format!("{}.sock", options.huge_pages));
        let served = serve(&socket, vec![Act::done(); calls.len()]);
        let mut api = Api::connect(&socket).await.unwrap();
        for call in &calls {
            api.make(call).await.unwrap();
        }
        let asked = served.await.unwrap();
        assert_eq!(asked.len(), calls.len());
        for description in Description::all() {
            if options.huge_pages && !description.has_huge_pages() {
                continue;
            }
            for request in &asked {
                description.check_request(&request.method, &request.path, &request.body).unwrap();
            }
        }
    }
}

#[test]
fn the_check_itself_finds_what_is_wrong() {
    let good = json!({ "vcpu_count": 1, "mem_size_mib": 256 });
    for description in Description::all() {
        let check = |body: &Value| description.check_request(&Method::PUT, "/machine-config", body);
        check(&good).unwrap();
        for (field, bad) in
            [("vcpu_count", json!(33)), ("mem_size_mib", json!("256")), ("unheard_of", json!(1))]
        {
            let mut body = good.clone();
            body[field] = bad;
            check(&body).unwrap_err();
        }
        check(&json!({ "vcpu_count": 1 })).unwrap_err();
        assert!(
            description
                .check_request(
                    &Method::PUT,
                    "/snapshot/load",
                    &json!({ "mem_backend": { "backend_type": "File" } })
                )
                .is_err()
        );
    }
}

#[test]
fn huge_pages_are_what_an_old_release_does_not_describe() {
    let options = every_option();
    let hardware = calls::Hardware { vcpus: 1, memory_mb: 256, durable: false, sidecar: false };
    let machine = &calls::boot(&options, "", hardware)[0];
    let body: Value = serde_json::from_slice(&machine.body().unwrap()).unwrap();
    for description in Description::all() {
        let checked = description.check_request(&machine.method(), machine.path(), &body);
        assert_eq!(checked.is_ok(), description.has_huge_pages(), "{checked:?}");
    }
}

#[test]
fn every_call_is_answered_by_no_content_or_an_error() {
    let options = every_option();
    for description in Description::all() {
        for call in every_call(&options) {
            let answers =
                description.operation(&call.method(), call.path())["responses"].as_object().unwrap();
            let succeeding: Vec<_> = answers.keys().filter(|status| status.starts_with('2')).collect();
            assert_eq!(succeeding, ["204"], "{}", call.name());
            assert!(answers["204"].get("schema").is_none(), "{} answers something", call.name());
            for failing in ["400", "default"] {
                let schema = &answers[failing]["schema"];
                assert_eq!(schema["$ref"], "#/definitions/Error", "{} {failing}", call.name());
                description.check(schema, &json!({ "fault_message": "why" })).unwrap();
            }
        }
    }
}

#[test]
fn versions_are_read_as_they_are_described() {
    for description in Description::all() {
        let answers = &description.operation(&Method::GET, "/version")["responses"];
        let answer = json!({ "firecracker_version": description.version });
        description.check(&answers["200"]["schema"], &answer).unwrap();
        let version: Version = serde_json::from_value(answer).unwrap();
        assert_eq!(version.firecracker_version, description.version);
        // What we cannot do without is what the description demands.
        description.check(&answers["200"]["schema"], &json!({})).unwrap_err();
        serde_json::from_value::<Version>(json!({})).unwrap_err();
    }
}
