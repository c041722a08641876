//! A tool that the model calls.

use tandem_client::{Client, Error};

const PARAMETERS: &str = r#"{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}"#;

/// Asks for the weather, which the model has to ask `weather` for. Returns the call's arguments and the answer.
pub async fn ask(url: &str, weather: impl Fn(&str) -> String) -> Result<(String, String), Error> {
    let client = Client::new(url)?;
    let mut chat = client
        .chat()
        .user("What is the weather in Lisbon?")
        .tool("get_weather", "Get the current weather.", PARAMETERS)
        .temperature(0.0)
        .max_tokens(200);
    let calling = chat.clone().require_tool(["get_weather"]).send().await?;
    let mut arguments = String::new();
    chat = chat.replied(&calling);
    for call in &calling.tool_calls {
        arguments = call.arguments_json.clone();
        chat = chat.tool_result(&call.id, weather(&arguments));
    }
    Ok((arguments, chat.send().await?.content))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let (arguments, answer) =
        ask("http://127.0.0.1:50051", |_| r#"{"temperature": 21, "sky": "sunny"}"#.into()).await?;
    println!("called with {arguments}\n{answer}");
    Ok(())
}
