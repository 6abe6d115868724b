use std::net::SocketAddr;

use serde::Deserialize;

use super::*;

const PROGRAM: Program =
    Program { name: "naru", about: "All in one.", overrides: &[("engine", "embedded"), ("rate_burst", "1")] };

#[derive(Debug, Deserialize)]
struct Config {
    listen: SocketAddr,
    rate_burst: u32,
    drain_deadline: Span,
    allowed_origins: Vec<String>,
    jwt_secret: Secret,
    #[serde(deserialize_with = "optional")]
    admin_listen: Option<SocketAddr>,
    #[serde(deserialize_with = "optional")]
    apns_key_file: Option<PathBuf>,
}

fn load(flags: &[&str], environment: &[(&str, &str)]) -> Result<Settings, ConfigError> {
    let arguments = std::iter::once(&PROGRAM.name).chain(flags);
    let matches = Settings::command(&PROGRAM).try_get_matches_from(arguments).expect("flags that exist");
    Settings::load(
        &PROGRAM,
        &matches,
        environment.iter().map(|(name, value)| (name.to_string(), value.to_string())),
    )
}

/// A configuration file that lives as long as the guard.
fn file(text: &str) -> tempfile::TempPath {
    let file = tempfile::NamedTempFile::new().expect("a temporary file").into_temp_path();
    std::fs::write(&file, text).expect("it can be written");
    file
}

fn path(file: &tempfile::TempPath) -> &str {
    file.to_str().expect("temporary paths are Unicode")
}

/// The error text when `result` is refused.
fn refusal<T>(result: Result<T, ConfigError>) -> String {
    result.err().expect("it should be refused").to_string()
}

#[test]
fn flags_win_over_environment_over_file_over_overrides_over_defaults() {
    let file = file("rate_burst = 2\n");
    let burst = |flags: &[&str], environment: &[(&str, &str)]| {
        let settings = load(flags, environment).expect("legal settings");
        (settings.pick::<Config>().expect("a Config").rate_burst, settings.source("rate_burst"))
    };
    let from_file = Source::File(path(&file).into());
    let in_environment = [("NARU_CONFIG", path(&file)), ("NARU_RATE_BURST", "3")];

    assert_eq!(burst(&[], &[]), (1, Source::Override));
    assert_eq!(burst(&["--config", path(&file)], &[]), (2, from_file.clone()));
    assert_eq!(burst(&[], &in_environment[..1]), (2, from_file));
    assert_eq!(burst(&[], &in_environment), (3, Source::Environment));
    assert_eq!(burst(&["--rate-burst", "4"], &in_environment), (4, Source::Flag));
    assert_eq!(load(&[], &[]).expect("defaults are legal").source("listen"), Source::Default);
}

#[test]
fn a_file_named_by_flag_wins_over_one_named_by_environment() {
    let (by_flag, by_environment) = (file("log = \"warn\""), file("log = \"error\""));
    let settings =
        load(&["--config", path(&by_flag)], &[("NARU_CONFIG", path(&by_environment))]).expect("legal");
    assert_eq!(settings.source("log"), Source::File(path(&by_flag).into()));
}

#[test]
fn a_config_gets_its_keys_in_its_types() {
    let environment = [
        ("NARU_ALLOWED_ORIGINS", "https://a.example, https://b.example"),
        ("NARU_DRAIN_DEADLINE", "1m 5s"),
        ("NARU_APNS_KEY_FILE", "/keys/apns.p8"),
        ("NARU_JWT_SECRET", "hunter2"),
        ("PATH", "/bin"),
    ];
    let config: Config = load(&[], &environment).expect("legal settings").pick().expect("a Config");
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.allowed_origins, ["https://a.example", "https://b.example"]);
    assert_eq!(config.drain_deadline.0.as_secs(), 65);
    assert_eq!(config.apns_key_file, Some("/keys/apns.p8".into()));
    assert_eq!(config.admin_listen, None);
    assert_eq!(config.jwt_secret.expose(), "hunter2");
}

#[test]
fn flags_are_taken_after_a_subcommand_too() {
    let command = Settings::command(&PROGRAM).subcommand(Command::new("token"));
    let matches =
        command.get_matches_from(["naru", "--rate-burst", "8", "token", "--log", "debug", "--print-config"]);
    let settings = Settings::load(&PROGRAM, &matches, []).expect("legal settings");
    assert_eq!((settings.source("log"), settings.source("rate_burst")), (Source::Flag, Source::Flag));
    assert!(Settings::print_wanted(&matches));
}

#[test]
fn an_unknown_key_is_refused_with_a_suggestion() {
    let file = file("listen = \"[::1]:0\"\ndatadir = \"/tmp\"\n");
    let refused = refusal(load(&["--config", path(&file)], &[]));
    assert_eq!(refused, format!("unknown key `datadir` in {}; did you mean `data_dir`?", path(&file)));

    let error = Settings::command(&PROGRAM)
        .try_get_matches_from(["naru", "--datadir", "/tmp"])
        .expect_err("no such flag");
    assert!(error.to_string().contains("'--data-dir'"), "{error}");
}

#[test]
fn a_value_with_which_nothing_would_work_is_refused_with_the_reason() {
    let refused = refusal(load(&[], &[("NARU_PING_INTERVAL", "0s")]));
    assert_eq!(
        refused,
        "`ping_interval` (from NARU_PING_INTERVAL): must be from 50ms to 1day: connections would be pinged without a pause"
    );
    let refused = refusal(load(&["--max-content-bytes", "4096"], &[("NARU_MAX_FRAME_BYTES", "4096")]));
    let wanted =
        "`max_content_bytes` (from --max-content-bytes): must be less than `max_frame_bytes` (4096): ";
    assert!(refused.starts_with(wanted), "{refused}");
    load(&[], &[("NARU_MAX_FRAME_BYTES", "4096")]).expect("smaller frames alone are legal");
}

#[test]
fn an_unknown_variable_is_collected_not_refused() {
    let settings =
        load(&[], &[("NARU_LISTN", "x"), ("NARU_LOG", "warn"), ("HOME", "/")]).expect("only a warning");
    assert_eq!(settings.unknown_environment(), ["NARU_LISTN"]);
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_its_key_and_place() {
    let file = file("rate_burst = \"many\"\n");
    let refused = refusal(load(&["--config", path(&file)], &[]));
    assert_eq!(refused, format!("`rate_burst` (from {}): must be an integer", path(&file)));
    let refused = refusal(load(&[], &[("NARU_RATE_BURST", "many")]));
    assert_eq!(refused, "`rate_burst` (from NARU_RATE_BURST): must be an integer");
    let refused = refusal(load(&["--rate-burst=many"], &[]));
    assert_eq!(refused, "`rate_burst` (from --rate-burst): must be an integer");
}

#[test]
fn a_value_that_its_field_refuses_is_named_with_key_and_place() {
    let pick =
        |name, value| refusal(load(&[], &[(name, value)]).and_then(|settings| settings.pick::<Config>()));
    let refused = pick("NARU_LISTEN", "nowhere");
    assert_eq!(refused, "`listen` (from NARU_LISTEN): invalid socket address syntax");
    assert!(pick("NARU_ADMIN_LISTEN", "nowhere").starts_with("`admin_listen` (from NARU_ADMIN_LISTEN): "));
    assert!(pick("NARU_DRAIN_DEADLINE", "soon").starts_with("`drain_deadline` (from NARU_DRAIN_DEADLINE): "));
    assert!(pick("NARU_RATE_BURST", "-1").starts_with("`rate_burst` (from NARU_RATE_BURST): "));
}

#[test]
fn a_field_without_a_key_is_a_mistake_of_ours() {
    #[derive(Debug, Deserialize)]
    struct Misfit {
        #[expect(dead_code, reason = "only its name counts")]
        colour: String,
    }
    let refused = refusal(load(&[], &[]).expect("legal settings").pick::<Misfit>());
    assert_eq!(refused, "a Config struct does not match defaults.toml: missing field `colour`");
}

#[test]
fn a_broken_file_is_refused_by_line_without_quoting_it() {
    for value in ["\"hunter2", "hunter2", "\"\\hunter2\"", "\"hunter2\" hunter2"] {
        let file = file(&format!("log = \"info\"\njwt_secret = {value}\n"));
        let refused = refusal(load(&["--config", path(&file)], &[]));
        assert!(refused.starts_with(&format!("{}, line 2: ", path(&file))), "{refused}");
        assert!(!refused.contains("hunter2"), "{refused}");
    }
    assert_eq!(refusal(load(&["--config", "/no/such"], &[])), "can't read the configuration file /no/such");
}

#[test]
fn print_shows_what_is_in_force_and_where_it_came_from_but_no_secret() {
    let environment = [
        ("NARU_JWT_SECRET", "hunter2"),
        ("NARU_PUSH_WEBHOOK_SECRET", "hunter2"),
        ("NARU_MONGODB_URL", "mongodb://ada:hunt@er/2@db1,db2/?replicaSet=rs0"),
        ("NARU_REDIS_URL", "redis://:hunter2@cache:6379/"),
        ("NARU_PUSH_WEBHOOK_URL", "https://ada:hunter2@backend:8443/push?key=hunter2&hunter2#hunter2"),
        ("NARU_JWT_JWKS_URL", "https://keys/jwks?mail=hunter2@example.com&key=a:hunter2@b&k=hunter2"),
        ("NARU_FCM_BASE_URL", "https://proxy:8443/p?key=hunter2@y&k=hunter2"),
    ];
    let settings = load(&["--max-room-members", "10"], &environment).expect("legal settings");
    let printed = settings.print();
    for line in [
        "listen = \"127.0.0.1:8080\"",
        "engine = \"embedded\" # from this binary's defaults",
        "max_room_members = 10 # from --max-room-members",
        "jwt_secret = \"***\" # from NARU_JWT_SECRET",
        "mongodb_url = \"mongodb://ada:***@db1,db2/?replicaSet=rs0\" # from NARU_MONGODB_URL",
        "redis_url = \"redis://:***@cache:6379/\" # from NARU_REDIS_URL",
        "amqp_url = \"amqp://127.0.0.1:5672/%2f\"",
        "push_webhook_url = \"https://ada:***@backend:8443/push?key=***&******\" # from NARU_PUSH_WEBHOOK_URL",
        "jwt_jwks_url = \"https://keys/jwks?mail=***&key=***&k=***\" # from NARU_JWT_JWKS_URL",
        "apns_key_id = \"\"",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line} is not in\n{printed}");
    }
    for text in [&printed, &format!("{settings:?}")] {
        assert!(!text.contains("hunt"), "a secret is in\n{text}");
    }
    load(&["--config", path(&file(&printed))], &[]).expect("what is printed can be loaded");
}

#[test]
fn a_refusal_does_not_quote_a_password() {
    #[derive(Debug, Deserialize)]
    struct Misfit {
        #[expect(dead_code, reason = "only its refusal counts")]
        redis_url: u16,
    }
    let settings = load(&[], &[("NARU_REDIS_URL", "redis://ada:hunter2@cache/")]).expect("a string");
    let refused = refusal(settings.pick::<Misfit>());
    assert!(
        refused.starts_with("`redis_url` (from NARU_REDIS_URL): \"redis://ada:***@cache/\" is"),
        "{refused}"
    );
    assert!(!refused.contains("hunter2"), "{refused}");
}

#[test]
fn help_has_every_key_with_its_comment_and_default() {
    let help = Settings::command(&PROGRAM).render_long_help().to_string();
    for key in SCHEMA.iter() {
        assert!(
            help.contains(&format!("--{} <", flag(key.name))) && help.contains(&key.about),
            "{}\n{help}",
            key.name
        );
    }
    assert!(help.contains("[default: \"embedded\"]") && help.contains("[default: 1]"), "{help}");
    Settings::command(&PROGRAM).debug_assert();
}
