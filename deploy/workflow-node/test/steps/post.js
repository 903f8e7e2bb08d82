export default defineComponent({
  async run({ steps, $ }) {
    $.send.http({
      method: "POST",
      url: "https://receiver.test/jedi",
      data: {
        name: "Luke Skywalker",
      },
    });
  },
});
