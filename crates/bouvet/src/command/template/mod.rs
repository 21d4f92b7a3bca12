//! `--format`: the part of Go's templates that people use with docker. `{{.State.Status}}`, `{{json .}}`, `{{range}}`,
//! `{{if}}`, `{{with}}`, `{{index}}`, `{{println}}`, variables and pipelines; `table …` for lists.
//!
//! Docker's functions and `table` are not part of Go's templates: a crate for these would need them added.

mod eval;
mod parse;

use serde_json::Value;

use self::parse::Node;
use super::outcome::Failed;
use super::table;

/// Format of a list as JSON, one object in each line.
const JSON: &str = "json";
/// Begins a template of a list with heads.
const TABLE: &str = "table";

/// A template that was understood.
#[derive(Debug)]
pub(super) struct Template(Vec<Node>);

impl Template {
    /// Understands `text`.
    pub(super) fn parse(text: &str) -> Result<Self, Failed> {
        parse::parse(text).map(Self).map_err(|error| {
            Failed::new(format!("the template `{}` is wrong: {error}", text.escape_debug()))
                .hint("it is a template of Go's, as in `{{.State.Status}}` or `{{json .}}`")
        })
    }

    /// Fills it with `value`.
    pub(super) fn render(&self, value: &Value) -> Result<String, Failed> {
        eval::render(&self.0, value)
            .map_err(|error| Failed::new(format!("cannot fill the template: {error}")))
    }
}

/// Format of a list.
#[derive(Debug)]
pub(super) enum Format {
    /// A JSON object in each line.
    Json,
    /// A template for each line; with heads.
    Table(Template),
    /// A template for each line.
    Plain(Template),
}

impl Format {
    /// Understands what was typed after `--format`.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, Failed> {
        let unescaped = |text: &str| text.replace("\\t", "\t").replace("\\n", "\n");
        let text = text.trim();
        if text == JSON {
            return Ok(Some(Self::Json));
        }
        match text.strip_prefix(TABLE) {
            Some("") => Ok(None),
            Some(rest) if rest.starts_with([' ', '\t']) || rest.starts_with("\\t") => {
                let rest = unescaped(rest);
                Ok(Some(Self::Table(Template::parse(rest.trim_start())?)))
            }
            _ => Ok(Some(Self::Plain(Template::parse(&unescaped(text))?))),
        }
    }

    /// Prints `rows`, whose fields have these heads.
    pub(super) fn print(&self, heads: &[(&str, &str)], rows: &[Value]) -> Result<(), Failed> {
        match self {
            Self::Json => rows.iter().try_for_each(|row| table::line(&row.to_string())),
            Self::Plain(template) => {
                // A sandbox may be called anything; a terminal obeys what it is told.
                rows.iter().try_for_each(|row| table::line(&plain(&template.render(row)?)))
            }
            Self::Table(template) => {
                let heads = heads.iter().map(|(field, head)| ((*field).to_owned(), Value::from(*head)));
                let head = template.render(&Value::Object(heads.collect()))?;
                let cells = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
                let rows: Result<Vec<_>, _> =
                    rows.iter().map(|row| Ok::<_, Failed>(cells(&template.render(row)?))).collect();
                let heads = cells(&head);
                table::print(&heads.iter().map(String::as_str).collect::<Vec<_>>(), rows?)
            }
        }
    }
}

fn plain(text: &str) -> String {
    let kept = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if kept(&c) { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(text: &str) -> Result<String, String> {
        let value = json!({
            "Id": "0123456789abcdef",
            "Name": "web",
            "State": { "Status": "running", "Running": true, "ExitCode": 0 },
            "Config": { "Env": ["A=1", "B=2"], "Labels": { "a.b": "x", "c": "y" }, "Cmd": [] },
            "Ports": { "80/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "8080" }] },
        });
        Template::parse(text).and_then(|template| template.render(&value)).map_err(|failed| failed.text)
    }

    #[test]
    fn templates_that_people_use_are_filled() {
        for (text, wanted) in [
            ("{{.State.Status}}", "running"),
            ("{{ .Name }}:{{.State.ExitCode}}", "web:0"),
            ("{{json .State}}", r#"{"ExitCode":0,"Running":true,"Status":"running"}"#),
            ("{{.Config.Env}} {{.State}}", "[A=1 B=2] map[ExitCode:0 Running:true Status:running]"),
            ("{{range .Config.Env}}{{println .}}{{end}}", "A=1\nB=2\n"),
            ("{{range $i, $e := .Config.Env}}{{if $i}},{{end}}{{$i}}={{$e}}{{end}}", "0=A=1,1=B=2"),
            ("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}", "a.b=x;c=y;"),
            (r#"{{index .Config.Labels "a.b"}}{{index .Config.Labels "none"}}"#, "x"),
            (r#"{{(index (index .Ports "80/tcp") 0).HostPort}}"#, "8080"),
            (r#"{{with index .Ports "80/tcp"}}{{(index . 0).HostIp}}{{end}}"#, "127.0.0.1"),
            ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
            (
                r#"{{if eq .State.Status "exited" "dead"}}a{{else if and .State.Running (not .Config.Cmd)}}b{{end}}"#,
                "b",
            ),
            (r#"{{join .Config.Env ", "}} {{len .Config.Env}} {{upper .Name}}"#, "A=1, B=2 2 WEB"),
            (r#"{{.Name | printf "%-5s|%q|%d%%" "x" | lower}}"#, "x    |\"web\"|%!d(missing)%"),
            (r#"{{printf "%.12s %5d %v" .Id 42 .State.Running}}"#, "0123456789ab    42 true"),
            ("a {{- /* no */ -}} b{{ `raw` }}", "abraw"),
            ("{{$n := .Name}}{{range .Config.Env}}{{$n}}{{$.Name}}{{end}}", "webwebwebweb"),
            ("{{range .Config.Cmd}}x{{else}}none{{end}}", "none"),
            (r#"{{truncate .Id 4}} {{split .Name "e" | json}} {{title .Name}}"#, r#"0123 ["w","b"] Web"#),
            (r#"{{print "a" 1 2 "b"}} {{gt 2 1}} {{ne .Name "x"}} {{or "" .Name}}"#, "a1 2b true true web"),
        ] {
            assert_eq!(filled(text).as_deref(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn wrong_templates_are_refused_with_the_reason() {
        for (text, reason) in [
            ("{{.Name", "an action has no end"),
            ("{{if .Name}}x", "`{{if}}` has no `{{end}}`"),
            ("x{{end}}", "`{{end}}` without"),
            ("{{nothing .}}", "there is no function `nothing`"),
            ("{{.Nmae}}", "there is no field `Nmae`; there are Config, Id, Name, Ports, State"),
            ("{{.Name.First}}", "`First` of a string"),
            ("{{index .Config.Env 5}}", "index 5"),
            ("{{$x}}", "`$x` was not set"),
            ("{{\"a}}", "a string has no end"),
            ("{{}}", "an action is empty"),
        ] {
            let error = filled(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let deep = format!("{}{}", "{{if .Name}}".repeat(65), "{{end}}".repeat(65));
        assert!(filled(&deep).unwrap_err().contains("nested more than 64"), "one past the limit");
        let fits = format!("{}{}", "{{if .Name}}".repeat(64), "{{end}}".repeat(64));
        assert_eq!(filled(&fits).as_deref(), Ok(""));
    }

    #[test]
    fn lists_have_heads_only_as_tables() {
        assert!(matches!(Format::parse("json"), Ok(Some(Format::Json))));
        assert!(matches!(Format::parse("table"), Ok(None)));
        assert!(matches!(Format::parse("table {{.ID}}\\t{{.Names}}"), Ok(Some(Format::Table(_)))));
        assert!(matches!(Format::parse("{{.ID}}"), Ok(Some(Format::Plain(_)))));
        assert!(Format::parse("{{.ID").is_err());
    }
}
